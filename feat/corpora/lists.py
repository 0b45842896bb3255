"""The lists of a mixture corpus, and where the wavs of a listed mixture lie.

Two kinds of list go with a WSJ0-2mix folder:

  mix_2_spk_min_tr_mix   the names of the mixtures, one a line, without folder and ".wav";
  mix_2_spk_tr.txt       what the mixtures are made of, one a line: for every talker the path of an
                         utterance and its gain in dB, separated by blanks.

`min` stands for the length rule, `tr` for the set and 2 for the number of talkers.
"""

import os
import re
from dataclasses import dataclass

from feat.base.files import UserError, write_text

SETS = ("tr", "cv", "tt")


@dataclass(frozen=True)
class MixtureLine:
    """One line of a mix_N_spk_SET.txt list.

    Attributes:
      paths: for every talker, the path of the utterance relative to the corpus root, with slashes.
      gains_db: for every talker, the gain in dB as the text of the list, which also becomes part of the name.
    """

    paths: tuple[str, ...]
    gains_db: tuple[str, ...]

    @property
    def name(self):
        """Name of the mixture: basename_gain for every talker, joined by underscores."""
        parts = []
        for path, gain_db in zip(self.paths, self.gains_db, strict=True):
            parts.append(f"{_stem(path)}_{float(gain_db):.5g}")
        return "_".join(parts)

    @property
    def text(self):
        """The line as the list holds it, without the line end."""
        return " ".join(f"{path} {gain}" for path, gain in zip(self.paths, self.gains_db, strict=True))


def names_path(lists_folder, set_name, talkers=2, mode="min", kind="mix"):
    """Path of a list made with the wavs; `kind` is "mix" for the names or "1", "2" for source paths."""
    return os.path.join(lists_folder, f"mix_{talkers}_spk_{mode}_{set_name}_{kind}")


def lines_path(lists_folder, set_name, talkers=2):
    """Path of the list of what the mixtures of a set are made of."""
    return os.path.join(lists_folder, f"mix_{talkers}_spk_{set_name}.txt")


def read_names(lists_folder, set_name, talkers=2, mode="min"):
    """Names of the mixtures of a set, in the order of the list mix_{talkers}_spk_{mode}_{set_name}_mix.

    Raises:
      UserError: the list is missing or empty, or a line is malformed or there twice.
    """
    path = names_path(lists_folder, set_name, talkers, mode)
    names = {}
    for number, name in _read_lines(path):
        if "/" in name or "\\" in name or name.endswith(".wav") or len(name.split()) > 1:
            raise UserError(
                f"{path}, line {number}: {name!r} is not the bare name of a mixture; leave out folder, .wav and blanks"
            )
        _refuse_repeated(path, number, name, names)
    return list(names)


def read_mixture_lines(lists_folder, set_name, talkers=2):
    """The list mix_{talkers}_spk_{set_name}.txt as [MixtureLine], in its order.

    Raises:
      UserError: the list is missing or empty, or a line is malformed or makes a name that was there.
    """
    path = lines_path(lists_folder, set_name, talkers)
    names, lines = {}, []
    for number, text in _read_lines(path):
        fields = text.split()
        if len(fields) != 2 * talkers:
            raise UserError(
                f"{path}, line {number}: {len(fields)} fields, {2 * talkers} are needed"
                f" (path and gain of {talkers} talkers); mend the line or the number of talkers"
            )
        line = MixtureLine(paths=tuple(fields[::2]), gains_db=tuple(fields[1::2]))
        for gain_db in line.gains_db:
            if not _is_number(gain_db):
                raise UserError(f"{path}, line {number}: the gain {gain_db!r} is not a number of dB; mend it")
        _refuse_repeated(path, number, line.name, names)
        lines.append(line)
    return lines


def write_mixture_lines(lists_folder, set_name, lines):
    """Writes [MixtureLine] as the list mix_N_spk_{set_name}.txt, N from the lines."""
    path = lines_path(lists_folder, set_name, len(lines[0].paths))
    write_text(path, "".join(line.text + "\n" for line in lines))


def write_name_lists(lists_folder, set_name, lines, mode="min"):
    """Writes the lists that go with the wavs of [MixtureLine]: names, and source paths of every talker."""
    talkers = len(lines[0].paths)
    for source in range(talkers):
        path = names_path(lists_folder, set_name, talkers, mode, kind=str(source + 1))
        write_text(path, "".join(line.paths[source] + "\n" for line in lines))
    # Last, because it is the list that everything downstream reads.
    write_text(names_path(lists_folder, set_name, talkers, mode), "".join(line.name + "\n" for line in lines))


def read_source_paths(lists_folder, set_name, talkers=2, mode="min"):
    """{name of a mixture: paths of its utterances}, as far as lists in the folder tell; none is fine.

    Those beside the list of names are asked first (see `write_name_lists`), then, if they do not go with it line by
    line, what the mixtures are made of.

    Raises:
      UserError: a list is empty or malformed.
    """
    lists = [names_path(lists_folder, set_name, talkers, mode, kind) for kind in ("mix", *range(1, talkers + 1))]
    if all(map(os.path.exists, lists)):
        columns = [[text for _, text in _read_lines(path)] for path in lists]
        if len(set(map(len, columns))) == 1 and all(_is_named_after(*row) for row in zip(*columns)):
            return {name: paths for name, *paths in zip(*columns)}
    if os.path.exists(lines_path(lists_folder, set_name, talkers)):
        return {line.name: list(line.paths) for line in read_mixture_lines(lists_folder, set_name, talkers)}
    return {}


def talkers_of_paths(rows):
    """{path: folder of its talker}, or None where no folder is a talker's.

    The talkers' folders are the outermost that differ within every mixture, as those of feat/wsj0_mix.py do: in
    wsj0/si_tr_s/01t/01to030v.wav the third.

    Args:
      rows: paths of the utterances of every mixture, with slashes.
    """
    rows = [[path.split("/") for path in row] for row in rows]
    depth = min((len(parts) for row in rows for parts in row), default=0)
    for folders in range(1, depth):
        if all(len({tuple(parts[:folders]) for parts in row}) == len(row) for row in rows):
            return {"/".join(parts): "/".join(parts[:folders]) for row in rows for parts in row}
    return None


def source_names(talkers):
    """Names of a mixture's signals: ["s1", "s2", ..., "mix"]."""
    return [f"s{source + 1}" for source in range(talkers)] + ["mix"]


def mixture_folder(data_folder, set_name, talkers=2, sample_rate=8000, mode="min"):
    """Folder of a set's s1, s2, ... and mix, such as DATA/2speakers/wav8k/min/tr."""
    return os.path.join(data_folder, f"{talkers}speakers", rate_folder(sample_rate), mode, set_name)


def rate_folder(sample_rate):
    """Folder name of a rate in Hz: wav8k, wav16k, wav22.05k."""
    return f"wav{sample_rate / 1000:g}k"


def mixture_paths(data_folder, set_name, name, talkers=2, sample_rate=8000, mode="min"):
    """Paths of the wavs of the mixture `name`: {"s1": ..., "s2": ..., "mix": ...}."""
    folder = mixture_folder(data_folder, set_name, talkers, sample_rate, mode)
    return {source: os.path.join(folder, source, name + ".wav") for source in source_names(talkers)}


def parts_of_name(name, talkers):
    """Utterances in the name of a mixture: "01to030v_0.76_20ga010m_-0.76" -> ["01to030v", "20ga010m"]."""
    number = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
    # Greedy: in "m01_00_0.5_f02_03_-0.5" the first gain is 0.5, not the number of the utterance.
    match = re.fullmatch("_".join(rf"(.+)_{number}" for _ in range(talkers)), name)
    if match is None:
        raise UserError(
            f"{name}: not a name like utterance_gain_utterance_gain, so its talkers are unknown;"
            " leave --dynamic_mixing out"
        )
    return list(match.groups())


def plain_talker(talker):
    """Talker as names of mixtures and triplets have it: parts are separated by underscores, and lists by blanks."""
    return re.sub(r"[_\s]", "-", talker)


def talker_of(utterance):
    """Talker of an utterance: what stands before the first "_" or "-"; in WSJ0 names the first three letters."""
    if re.fullmatch(r"\w{8}", utterance) and "_" not in utterance:
        return utterance[:3]
    return re.split(r"[-_]", utterance)[0]


def _read_lines(path):
    """[(line number, stripped text)] of the lines that are not blank. Raises UserError if there is none."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [(number, line.strip()) for number, line in enumerate(file, start=1)]
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such list; check the list folder, or make one with feat/wsj0_mix.py or feat/voices.py"
        ) from error
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path}: not a text file; check the list folder") from error
    lines = [(number, text) for number, text in lines if text]
    if not lines:
        raise UserError(f"{path}: the list is empty; make it again")
    return lines


def _refuse_repeated(path, number, name, seen):
    """Adds `name` to `seen` ({name: line number}). Raises UserError if it was there."""
    if name in seen:
        raise UserError(f"{path}, line {number}: {name} is already on line {seen[name]}; remove one of them")
    seen[name] = number


def _stem(path):
    """Name of the file `path` of a list, without its extension."""
    return os.path.splitext(path.rsplit("/", 1)[-1])[0]


def _is_named_after(name, *paths):
    """Whether a mixture of these utterances has this name."""
    for path in paths:
        stem = _stem(path) + "_"
        if not name.startswith(stem):
            return False
        gain, _, name = name.removeprefix(stem).partition("_")
        if not _is_number(gain):
            return False
    return not name


def _is_number(text):
    try:
        return abs(float(text)) < float("inf")
    except ValueError:
        return False
