"""Makes WSJ0-2mix and WSJ0-3mix from the published lists, or a corpus like them from any recordings.

From WSJ0 (its .wv1 files decoded to wav under wsj0/) and the lists mix_2_spk_{tr,cv,tt}.txt:

    python feat/wsj0_mix.py --wsj0_root /data --lists_folder lists --output_folder mixtures

From a folder with a sub-folder for every talker, or tr/, cv/ and tt/ with those; the lists are drawn:

    python feat/wsj0_mix.py --draw --corpus_root LibriSpeech/train-clean-100 --output_folder mixtures

Both write

    mixtures/2speakers/wav8k/min/{tr,cv,tt}/{s1,s2,mix}/NAME.wav
    mixtures/lists/mix_2_spk_{tr,cv,tt}.txt               what the mixtures are made of
    mixtures/lists/mix_2_spk_min_{tr,cv,tt}_{mix,1,2}     their names, and the paths of their sources

Killed at any moment, the same command goes on where it was.
"""

import math
import os
import re
import time
import zlib

from feat.base.script import run_script

from absl import flags

from feat.base.files import UserError, require_free_bytes
from feat.corpora.find import find_utterances, find_wsj0
from feat.corpora.lists import SETS, names_path, read_mixture_lines, write_mixture_lines
from feat.corpora.mixture_tree import MixtureTree, claim_folder, file_names, needed_bytes, write_tree
from feat.signals.mixing import LEVEL_REVISIONS, MODES, draw_sets


def make_mixtures(tree, lines_of_set, level_table=None, settings=None, overwrite=False, num_workers=0):
    """Writes the mixtures of the lines, or what is missing of them, and the lists that go with them.

    Args:
      tree: MixtureTree.
      lines_of_set: {set: [MixtureLine]}, all of equally many talkers.
      level_table: {utterance: active level as a power}, see `read_level_table`; the others are measured.
      settings: {name: value}, what the lines were drawn with, if they were.
      overwrite: replace what was made in the folder with other settings.
      num_workers: processes; 0 takes one for every core.

    Returns:
      One line that sums up what was done.

    Raises:
      UserError: sources are missing or unusable, the disk is too small, or the folder holds other mixtures.
    """
    started = time.monotonic()
    level_table = level_table or {}
    talkers = len(next(iter(lines_of_set.values()))[0].paths)
    _require_sources(tree, lines_of_set)
    claim_folder(
        os.path.join(tree.data_folder, f"{talkers}speakers"),
        {
            **(settings or {}),
            "level_revision": tree.level_revision,
            "level_table": zlib.crc32(repr(sorted(level_table.items())).encode()) if level_table else None,
        },
        overwrite,
        companions=[names_path(tree.lists_folder, set_name, talkers, mode) for set_name in SETS for mode in MODES],
    )
    needed = needed_bytes(tree, lines_of_set)
    require_free_bytes(tree.data_folder, needed, "the mixtures")
    if needed:
        print(f"{tree.data_folder}: {needed / 1e6:,.0f} MB will be written", flush=True)
    for set_name, lines in lines_of_set.items():
        write_mixture_lines(tree.lists_folder, set_name, lines)
    levels = {path: level_table[_stem(path)] for path in _sources(lines_of_set) if _stem(path) in level_table}
    made = write_tree(tree, lines_of_set, levels, num_workers)
    total = sum(map(len, lines_of_set.values()))
    return (
        f"{tree.data_folder}: {total} mixtures of {talkers} talkers, {made} of them made now;"
        f" {time.monotonic() - started:.0f} s"
    )


def read_level_table(path):
    """Active levels from a text file, a line for every utterance: its name and its level as a power.

    Blanks, tabs, commas or semicolons may stand between; a first line of headings is skipped, and so are
    the folder and the extension of a name.

    Returns:
      {utterance: level}.

    Raises:
      UserError: the file is missing, or a line does not hold a name and a positive number.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            rows = [re.split(r"[\s,;]+", line.strip()) for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no level table can be read there; check --level_table") from error
    levels = {}
    for number, row in enumerate(rows, start=1):
        if row == [""]:
            continue
        level = _positive(row[1]) if len(row) == 2 else None
        if level is None and number > 1:
            raise UserError(f"{path}, line {number}: {' '.join(row)!r} is not an utterance and its level; mend it")
        if level is not None:
            levels[_stem(row[0])] = level
    return levels


def _sources(lines_of_set):
    return {path for lines in lines_of_set.values() for line in lines for path in line.paths}


def _stem(path):
    return os.path.splitext(os.path.basename(path))[0]


def _require_sources(tree, lines_of_set):
    """Raises UserError, naming the first, if utterances of the lines are missing."""
    paths = sorted(_sources(lines_of_set))
    missing = [path for path in paths if not os.path.exists(tree.source_path(path))]
    if not missing:
        return
    first = tree.source_path(missing[0])
    beside = {name.lower() for name in file_names(os.path.dirname(first))}
    stem = _stem(first).lower()
    mend = "check --wsj0_root or --corpus_root"
    if stem + ".wv1" in beside:
        mend = "decode the .wv1 files beside it, e.g. sph2pipe -f wav IN.wv1 OUT.wav"
    elif stem + ".wv2" in beside:
        mend = (
            f"{_stem(first)}.wv2 beside it is the second microphone of WSJ0; the mixtures are made of the close-talk"
            " channel, so decode the .wv1 files, e.g. sph2pipe -f wav IN.wv1 OUT.wav"
        )
    raise UserError(f"{first}: no such file; {len(missing)} of {len(paths)} utterances are missing; {mend}")


def _positive(text):
    """The number in `text` if it is one above 0, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 < number < math.inf else None


def _published_lines(values, sets):
    """(source root, {set: [MixtureLine]}, settings) of the published lists."""
    _require_flags(values, "wsj0_root", "lists_folder")
    lines_of_set = {name: read_mixture_lines(values.lists_folder, name, values.talkers) for name in sets}
    return find_wsj0(values.wsj0_root), lines_of_set, {}


def _drawn_lines(values, sets):
    """(source root, {set: [MixtureLine]}, settings) of lists drawn from --corpus_root."""
    _require_flags(values, "corpus_root")
    shares = [_positive(share) for share in values.split]
    if None in shares or len(shares) != len(SETS) or not math.isclose(sum(shares), 1):
        raise UserError(f"--split {','.join(values.split)}: three shares that add up to 1 are needed")
    fractions = dict(zip(SETS, shares, strict=True))
    counts = {name: values[f"{name}_mixtures"].value for name in SETS}
    utterances = find_utterances(values.corpus_root, values.seed, fractions)
    chosen = {name: counts[name] for name in sets}
    lines_of_set = draw_sets(utterances, chosen, values.talkers, values.seed)
    settings = {
        "seed": values.seed,
        "mixtures": counts,
        "split": fractions,
        "corpus_root": os.path.abspath(values.corpus_root),
        "utterances": zlib.crc32(repr(utterances).encode()),
    }
    return values.corpus_root, lines_of_set, settings


def _require_flags(values, *names):
    for name in names:
        if not values[name].value:
            raise UserError(f"--{name} is missing; see the examples in --help")


def _choices(values, name, allowed):
    """The values of the list flag `name`. Raises UserError for one that is not allowed, or for none."""
    chosen = list(dict.fromkeys(values[name].value))
    wrong = [value for value in chosen if value not in allowed]
    if wrong or not chosen:
        raise UserError(f"--{name} {','.join(chosen)}: give one or more of {','.join(allowed)}")
    return chosen


def define_flags():
    flags.DEFINE_string("wsj0_root", None, "folder that holds wsj0/, its .wv1 files decoded to wav")
    flags.DEFINE_string("lists_folder", None, "folder of the published lists mix_N_spk_{tr,cv,tt}.txt")
    flags.DEFINE_string("output_folder", None, "folder to write to")
    flags.DEFINE_integer("talkers", 2, "talkers of a mixture", lower_bound=2, upper_bound=3)
    flags.DEFINE_list("sample_rates", ["8000"], "Hz of the wavs")
    flags.DEFINE_list("modes", ["min"], "length rules: min cuts to the shortest, max pads to the longest")
    flags.DEFINE_list("sets", list(SETS), "sets to make")
    flags.DEFINE_enum("level_revision", "padded", LEVEL_REVISIONS, "revision of the active-level meter")
    flags.DEFINE_list("level_table", [], "text files with an utterance and its active level (power) a line")
    flags.DEFINE_bool("overwrite", False, "replace what was made in the folder with other settings")
    flags.DEFINE_integer("num_workers", 0, "processes; 0: one for every core", lower_bound=0)
    flags.DEFINE_bool("draw", False, "draw the lists from --corpus_root rather than read them")
    flags.DEFINE_string("corpus_root", None, "with --draw: a folder of wav or flac files for every talker")
    flags.DEFINE_list("split", ["0.8", "0.1", "0.1"], "with --draw: shares of the talkers for tr, cv, tt")
    flags.DEFINE_integer("seed", 0, "with --draw: draws the lists")
    for set_name, mixtures in (("tr", 20000), ("cv", 5000), ("tt", 3000)):
        flags.DEFINE_integer(
            f"{set_name}_mixtures", mixtures, f"with --draw: mixtures of the set {set_name}", lower_bound=1
        )


def main(_):
    values = flags.FLAGS
    _require_flags(values, "output_folder")
    sets = _choices(values, "sets", SETS)
    modes = _choices(values, "modes", MODES)
    if not all(rate.isdecimal() and int(rate) for rate in values.sample_rates) or not values.sample_rates:
        raise UserError(f"--sample_rates {','.join(values.sample_rates)}: give one or more rates in Hz")
    level_table = {}
    for path in values.level_table:
        level_table.update(read_level_table(path))
    source_root, lines_of_set, settings = (_drawn_lines if values.draw else _published_lines)(values, sets)
    tree = MixtureTree(
        source_root,
        values.output_folder,
        os.path.join(values.output_folder, "lists"),
        tuple(int(rate) for rate in values.sample_rates),
        tuple(modes),
        values.level_revision,
    )
    print(make_mixtures(tree, lines_of_set, level_table, settings, values.overwrite, values.num_workers))


if __name__ == "__main__":
    define_flags()
    run_script(main)
