"""Lists of triplets for target-speaker extraction: a mixture, its target, enrolments of the target's talker.

Three layouts are read:

  FOLDER/part/STEM-mixed.wav, STEM-target.wav, STEM-ref.wav      what feat/librispeech_mix.py writes
  FOLDER/mix/*.wav, FOLDER/targets/*.wav, FOLDER/refs/*.wav      for evaluation
  FOLDER/mix.scp, ref.scp, aux.scp                               lists of WSJ0-2mix-extr, "key path" a line

The name of a file in the first two starts with TARGET_NOISE_, the talkers of the target and the interferer.
Folders are looked at anew every time; nothing about them is stored.
"""

import os
import re
from dataclasses import dataclass

from feat.base.files import UserError
from feat.corpora.scp import read_fields, read_scp

UNKNOWN = -1  # label of a talker who is not among the classes
_SUFFIXES = {"mixture": "-mixed", "target": "-target", "enrolment": "-ref"}
_FOLDERS = {"mixture": "mix", "target": "targets", "enrolment": "refs"}
_LISTS = {"mixture": "mix.scp", "target": "ref.scp", "enrolment": "aux.scp"}
_EXTENSIONS = (".wav", ".flac")


@dataclass(frozen=True)
class Triplet:
    """One entry of a set.

    Attributes:
      name: its name, which no other entry of the set has.
      mixture, target: paths.
      enrolments: paths of one or more utterances of the target's talker.
      speaker: the target's talker.
      label: class number of that talker, UNKNOWN if it has none.
      seconds: mixture and target count up to here; None: to their ends.
    """

    name: str
    mixture: str
    target: str
    enrolments: tuple[str, ...]
    speaker: str
    label: int = UNKNOWN
    seconds: float | None = None


def part_stem(target, noise, number, segment=None):
    """Stem of the files of a triplet, and of a segment of it: 103_1034_000007_0."""
    stem = f"{target}_{noise}_{number:06d}"
    return stem if segment is None else f"{stem}_{segment}"


def triplet_paths(folder, stem, layout="part"):
    """{"mixture", "target", "enrolment": path} of the files of a triplet in the layout "part" or "evaluation"."""
    below = dict.fromkeys(_SUFFIXES, "part") if layout == "part" else _FOLDERS
    return {kind: os.path.join(folder, below[kind], stem + suffix + ".wav") for kind, suffix in _SUFFIXES.items()}


def read_triplets(folder, speakers=None, **lists):
    """The triplets of a folder of any of the three layouts.

    Args:
      speakers: talkers in the order of their labels, as of the training set; None: those of the set itself.
      lists: further arguments of `read_scp_lists`.

    Returns:
      [Triplet].

    Raises:
      UserError: it has none of the layouts, or files of a triplet are missing.
    """
    if os.path.exists(os.path.join(folder, _LISTS["mixture"])):
        return read_scp_lists(folder, speakers, **lists)
    if os.path.isdir(os.path.join(folder, "part")):
        return read_part_folder(os.path.join(folder, "part"), speakers)
    if os.path.isdir(os.path.join(folder, _FOLDERS["mixture"])):
        return read_evaluation_folder(folder, speakers)
    raise UserError(
        f"{folder}: holds no part/, no mix/ and no mix.scp; make one with feat/librispeech_mix.py, or mend the path"
    )


def read_part_folder(folder, speakers=None):
    """Triplets of STEM-mixed.wav, STEM-target.wav and STEM-ref.wav, in the order of the names of the targets."""
    stems = {kind: set() for kind in _SUFFIXES}
    for name in _audio_names(folder):
        stem, extension = os.path.splitext(name)
        for kind, suffix in _SUFFIXES.items():
            if stem.endswith(suffix) and extension == ".wav":
                stems[kind].add(stem.removesuffix(suffix))
    together = set().union(*stems.values())
    if not together:
        raise UserError(f"{folder}: no STEM-mixed.wav; make some with feat/librispeech_mix.py, or mend the path")
    for kind, suffix in _SUFFIXES.items():
        if missing := sorted(together - stems[kind]):
            raise UserError(
                f"{folder}: {missing[0]}{suffix}.wav is missing, and {len(missing) - 1} more like it;"
                " run feat/librispeech_mix.py again"
            )
    ordered = sorted(together, key=lambda stem: stem + _SUFFIXES["target"] + ".wav")
    rows = [
        (stem, *[os.path.join(folder, stem + suffix + ".wav") for suffix in _SUFFIXES.values()], _ids(folder, stem)[0])
        for stem in ordered
    ]
    return _labelled(rows, speakers)


def read_evaluation_folder(folder, speakers=None):
    """Triplets of mix/, targets/ and refs/, whose files are matched by name, or else by their order."""
    names = {kind: _audio_names(os.path.join(folder, below)) for kind, below in _FOLDERS.items()}
    counts = {kind: len(some) for kind, some in names.items()}
    stems = {kind: {_bare(kind, name): name for name in some} for kind, some in names.items()}
    if len(set(counts.values())) > 1 or not counts["mixture"]:
        listed = ", ".join(f"{_FOLDERS[kind]}/ {count}" for kind, count in counts.items())
        raise UserError(
            f"{folder}: equally many files are needed, there are {listed}{_first_lost(stems)};"
            " put it back, or take the others of its name away"
        )
    if all(some.keys() == stems["target"].keys() for some in stems.values()):
        matched = [tuple(stems[kind][_bare("target", name)] for kind in _FOLDERS) for name in names["target"]]
    else:
        matched = list(zip(*names.values(), strict=True))
    rows = []
    for triple in matched:
        ids = {_ids(folder, name) for name in triple}
        if len(ids) > 1:
            raise UserError(f"{folder}: {', '.join(triple)} are not of the same talkers; a file is missing or misnamed")
        paths = [os.path.join(folder, below, name) for below, name in zip(_FOLDERS.values(), triple)]
        rows.append((_bare("mixture", triple[0]), *paths, ids.pop()[0]))
    return _labelled(rows, speakers)


def read_scp_lists(folder, speakers=None, roots=(), durations=None):
    """Triplets of the lists mix.scp, ref.scp and aux.scp, as of WSJ0-2mix-extr.

    A key is UTT1_SNR1_UTT2_SNR2_AUX; the talker is the first three letters of AUX.

    Args:
      speakers: talkers in the order of their labels, see `read_speakers`; None: sorted, those of the set.
      roots: where the files lie, see feat.corpora.scp.located.
      durations: {utterance: seconds} of the original utterances, see `read_durations`: mixture and target count
        up to the end of the shorter. None: all of them counts.

    Raises:
      UserError: a list is missing or malformed, their keys differ, or an utterance has no duration.
    """
    tables = {kind: read_scp(os.path.join(folder, name), roots) for kind, name in _LISTS.items()}
    keys = list(tables["mixture"])
    for kind, table in tables.items():
        if list(table) != keys:
            line = next((i for i, (a, b) in enumerate(zip(keys, table)) if a != b), min(len(keys), len(table)))
            raise UserError(
                f"{os.path.join(folder, _LISTS[kind])}, entry {line + 1}: other keys than {_LISTS['mixture']} has;"
                " give the lists of one set"
            )
    rows, seconds = [], []
    for key in keys:
        utterances = _utterances_of_key(folder, key)
        rows.append((key, *[table[key] for table in tables.values()], utterances[-1][:3]))
        unknown = [] if durations is None else [utt for utt in utterances[:2] if utt not in durations]
        if unknown:
            raise UserError(f"{folder}: {unknown[0]}, of {key}, has no duration; give the list of all utterances")
        seconds.append(None if durations is None else min(durations[utt] for utt in utterances[:2]))
    if speakers is None:
        speakers = sorted({row[-1] for row in rows})
    return _labelled(rows, speakers, seconds)


def read_speakers(path):
    """Talkers in the order of their labels: a list with one a line."""
    speakers = [line[0] for line in read_fields(path, 1)]
    if len(set(speakers)) < len(speakers):
        raise UserError(f"{path}: a talker is there twice; remove one of them")
    return speakers


def read_durations(path):
    """{utterance: seconds} of a list with both a line. Raises UserError for seconds that are not above 0."""
    durations = {}
    for name, text in read_fields(path, 2):
        try:
            durations[name] = float(text)
        except ValueError as error:
            raise UserError(f"{path}: {error}; a line is an utterance and its seconds") from error
        if not 0 < durations[name] < float("inf"):
            raise UserError(f"{path}: {name} has {text} seconds, more than 0 are needed; mend the line")
    return durations


def talkers_of_triplet(name):
    """(target, interferer) in the name of an entry of any of the layouts. Raises UserError if it has none."""
    match = _match_key(name)
    if match:
        first, second, enrolled = (utterance[:3] for utterance in match.groups())
        return enrolled, second if first == enrolled else first
    return _ids("talkers by name", name)


def speakers_of(triplets):
    """Talkers in the order of their labels, to number another set with."""
    labels = {triplet.label: triplet.speaker for triplet in triplets if triplet.label != UNKNOWN}
    return [labels.get(label, "") for label in range(max(labels, default=-1) + 1)]


def require_labels(triplets, classes):
    """Raises UserError unless every talker has a label below `classes`."""
    for triplet in triplets:
        if not 0 <= triplet.label < classes:
            said = f"the label {triplet.label}" if triplet.label != UNKNOWN else "no label"
            raise UserError(
                f"{triplet.name}: talker {triplet.speaker} has {said}, but there are {classes} classes;"
                " train on the talkers that the classes were made of, or change their number"
            )


def _labelled(rows, speakers, seconds=None):
    """[Triplet] of [(name, mixture, target, enrolment, speaker)]; talkers are numbered as they come."""
    if speakers is None:
        speakers = dict.fromkeys(row[-1] for row in rows)
    labels = {speaker: label for label, speaker in enumerate(speakers)}
    return [
        Triplet(name, mixture, target, (enrolment,), speaker, labels.get(speaker, UNKNOWN), length)
        for (name, mixture, target, enrolment, speaker), length in zip(rows, seconds or [None] * len(rows))
    ]


def _audio_names(folder):
    try:
        return sorted(name for name in os.listdir(folder) if name.lower().endswith(_EXTENSIONS) and name[0] != ".")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{folder}: no such folder; check the path of the set") from error


def _first_lost(stems):
    """Says which file is missing first, where names are the same in all folders; {kind: {stem: file}}."""
    together = set().union(*stems.values())
    if not any(some.keys() == together for some in stems.values()):
        return ""  # names tell nothing
    lost = [(stem, kind) for stem in sorted(together) for kind in stems if stem not in stems[kind]]
    return f"; {_FOLDERS[lost[0][1]]}/ has none for {lost[0][0]}" if lost else ""


def _bare(kind, name):
    return os.path.splitext(name)[0].removesuffix(_SUFFIXES[kind])


def _ids(folder, name):
    """(target, noise), the talkers in the name of a file."""
    # Talkers in names of `part_stem` may have a "-", which in others parts the interferer from what follows.
    match = re.match(r"([^_]+)_([^_]+)_\d{6}(?:[_.-]|$)", name) or re.match(r"([^_]+)_([^_-]+)", name)
    if match is None:
        raise UserError(f"{folder}: {name!r} does not start with TARGET_NOISE_, the two talkers; rename it")
    return match.groups()


def _utterances_of_key(folder, key):
    """(utt1, utt2, auxiliary utterance) of a key."""
    match = _match_key(key)
    if match is None:
        raise UserError(f"{folder}: {key!r} is not a key like UTT1_SNR1_UTT2_SNR2_AUX; mend the lists")
    return match.groups()


def _match_key(key):
    number = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
    return re.fullmatch(rf"(.+?)_{number}_(.+?)_{number}_(.+)", key)
