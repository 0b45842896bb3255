"""Writes the folder of a mixture corpus: s1, s2, ... and mix of every listed mixture, and the lists.

Killed at any moment, the same call goes on where it was: wavs are written whole or not at all, those
that are there are left alone, and a list of names appears when all of its wavs do.
"""

import contextlib
import json
import os
import shutil
from dataclasses import dataclass
from functools import partial
from itertools import chain

from feat.base.files import UserError, make_writable_directory, write_text
from feat.base.parallel import parallel_map
from feat.corpora.lists import MixtureLine, mixture_folder, mixture_paths, names_path, source_names, write_name_lists
from feat.signals.audio import read_resampled, to_int16, wav_info, write_pcm16
from feat.signals.mixing import LEVEL_RATE_HZ, active_level, mix_sources

BYTES_PER_SAMPLE = 2
_SETTINGS = "settings.json"


@dataclass(frozen=True)
class MixtureTree:
    """A mixture corpus and how it is made.

    Attributes:
      source_root: folder that the paths of the lines are relative to.
      data_folder: folder of 2speakers/ or 3speakers/.
      lists_folder: folder of the lists.
      sample_rates: Hz of the wavs, one sub-folder each.
      modes: length rules, "min" and "max", one sub-folder each.
      level_revision: see `feat.signals.mixing.active_level`.
    """

    source_root: str
    data_folder: str
    lists_folder: str
    sample_rates: tuple[int, ...] = (8000,)
    modes: tuple[str, ...] = ("min",)
    level_revision: str = "padded"

    def source_path(self, path):
        """Where the utterance `path` of a line lies."""
        return os.path.join(self.source_root, *path.split("/"))


@dataclass(frozen=True)
class _Mixture:
    """One mixture to make. `levels`: active level (power) of every source."""

    tree: MixtureTree
    set_name: str
    line: MixtureLine
    levels: tuple[float, ...]


def claim_folder(folder, settings, overwrite=False, companions=(), sources=()):
    """Makes `folder` the place of what `settings` yield, so that no folder ever holds parts of two corpora.

    Args:
      folder: is made if need be; settings.json in it remembers the settings.
      settings: {name: value} that JSON can hold, all that the content depends on.
      overwrite: if the folder was made with other settings, empty it rather than refuse it.
      companions: paths of files elsewhere that describe the content and go when it goes.
      sources: folders that the content is made from.

    Raises:
      UserError: the folder was made with other settings, holds files of unknown origin, which nothing replaces, or
        is, holds or lies in one of `sources`.
    """
    for source in sources:
        _refuse_overlap(folder, source)
    discarded = os.path.abspath(folder) + ".discarded"
    shutil.rmtree(discarded, ignore_errors=True)  # what a kill left below
    ours, problem = _disagreement(folder, settings)
    if problem and not ours:
        raise UserError(f"{folder}: {problem}; choose another folder, or move the files elsewhere")
    if problem and not overwrite:
        raise UserError(f"{folder}: {problem}; choose another folder, or replace it with --overwrite")
    if problem:
        for path in companions:
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)
        # Renamed first, because a kill halfway through the deletion must not leave a folder that looks usable.
        os.replace(folder, discarded)
        shutil.rmtree(discarded)
    make_writable_directory(folder)
    path = os.path.join(folder, _SETTINGS)
    if not os.path.exists(path):
        write_text(path, json.dumps(settings, indent=1) + "\n")


def needed_bytes(tree, lines_of_set):
    """Bytes of the wavs of `lines_of_set` ({set: [MixtureLine]}) that are missing, from their sources' headers."""
    lines = [line for name, lines in lines_of_set.items() for line in missing_lines(tree, name, lines)]
    seconds = {path: wav_info(tree.source_path(path)).seconds for path in _sources(lines)}
    total_seconds = 0
    for line in lines:
        lengths = [seconds[path] for path in line.paths]
        for mode in tree.modes:
            total_seconds += (len(lengths) + 1) * (min if mode == "min" else max)(lengths)
    return int(total_seconds * sum(tree.sample_rates) * BYTES_PER_SAMPLE)


def missing_lines(tree, set_name, lines):
    """The [MixtureLine] of which at least one wav is not there."""
    if not lines:
        return []
    talkers = len(lines[0].paths)
    missing = set()
    for sample_rate in tree.sample_rates:
        for mode in tree.modes:
            folder = mixture_folder(tree.data_folder, set_name, talkers, sample_rate, mode)
            for source in source_names(talkers):
                present = file_names(os.path.join(folder, source))
                missing.update(line.name for line in lines if line.name + ".wav" not in present)
    return [line for line in lines if line.name in missing]


def measure_level(path, revision="padded"):
    """Active level (power) of the utterance in the wav `path`, at 8 kHz. Raises UserError if it is silent."""
    try:
        level, _ = active_level(read_resampled(path, LEVEL_RATE_HZ), LEVEL_RATE_HZ, revision)
    except ValueError as error:
        raise UserError(f"{path}: {error}; take it out of the lists or replace it") from error
    return float(level)


def write_tree(tree, lines_of_set, level_table=None, num_workers=0):
    """Writes the missing wavs of all sets, then the lists of names.

    Args:
      tree: MixtureTree.
      lines_of_set: {set: [MixtureLine]}.
      level_table: {path in a line: active level as a power}; what it lacks is measured.
      num_workers: processes; 0 takes one for every core.

    Returns:
      The number of mixtures that were made now; the others were there.

    Raises:
      UserError: a source is unusable (see `feat.signals.audio.read_mono`) or silent.
    """
    missing = {name: missing_lines(tree, name, lines) for name, lines in lines_of_set.items()}
    for set_name, lines in missing.items():
        for mode in tree.modes if lines else ():
            with contextlib.suppress(FileNotFoundError):
                os.remove(names_path(tree.lists_folder, set_name, len(lines[0].paths), mode))

    levels = dict(level_table or {})
    unmeasured = [path for path in _sources(chain(*missing.values())) if path not in levels]
    measured = parallel_map(partial(_level, tree), unmeasured, num_workers, "speech levels")
    levels.update(zip(unmeasured, measured, strict=True))

    jobs = [
        _Mixture(tree, set_name, line, tuple(levels[path] for path in line.paths))
        for set_name, lines in missing.items()
        for line in lines
    ]
    parallel_map(_write_mixture, jobs, num_workers, "mixtures")
    for set_name, lines in lines_of_set.items():
        for mode in tree.modes if lines else ():
            write_name_lists(tree.lists_folder, set_name, lines, mode)
    return len(jobs)


def file_names(folder):
    """Names of the files in `folder`; none if it does not exist."""
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _refuse_overlap(folder, source):
    """Raises UserError if one of the two folders is or holds the other."""
    ours, theirs = os.path.realpath(folder), os.path.realpath(source)
    shared = os.path.commonpath([ours, theirs])
    if shared in (ours, theirs):
        how = "is" if ours == theirs else "holds" if shared == ours else "lies in"
        raise UserError(f"{folder}: {how} {source}, which is only read; choose another folder to write to")


def _disagreement(folder, settings):
    """(whether `folder` was made here, why it is not the place of what `settings` yield, in words).

    No words if it is, or may become so.
    """
    if not file_names(folder):
        return True, ""
    try:
        with open(os.path.join(folder, _SETTINGS), encoding="utf-8") as file:
            present = json.load(file)
    except (OSError, ValueError):
        present = None
    wanted = json.loads(json.dumps(settings))
    if not isinstance(present, dict) or not present.keys() & wanted.keys():
        return False, f"holds files, but no {_SETTINGS} that says how they were made"
    differing = [
        f"{name} {present.get(name)} (now {wanted.get(name)})"
        for name in [*wanted, *(present.keys() - wanted.keys())]
        if present.get(name) != wanted.get(name)
    ]
    return True, "made with " + ", ".join(differing) if differing else ""


def _sources(lines):
    """Paths of the utterances of [MixtureLine], once each, in order of appearance."""
    return list(dict.fromkeys(path for line in lines for path in line.paths))


def _level(tree, path):
    return measure_level(tree.source_path(path), tree.level_revision)


def _write_mixture(job):
    """Writes the missing wavs of one _Mixture."""
    tree, line = job.tree, job.line
    paths = [tree.source_path(path) for path in line.paths]
    for sample_rate in tree.sample_rates:
        sources = [read_resampled(path, sample_rate) for path in paths]
        for mode in tree.modes:
            mixture, scaled = mix_sources(sources, job.levels, line.gains_db, mode)
            targets = mixture_paths(tree.data_folder, job.set_name, line.name, len(paths), sample_rate, mode)
            for target, signal in zip(targets.values(), [*scaled, mixture], strict=True):
                if not os.path.exists(target):
                    write_pcm16(target, to_int16(signal), sample_rate)
