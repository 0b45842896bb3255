"""Finds the recordings of corpora: WSJ0, LibriSpeech, VCTK-DEMAND and folders of noise."""

import fnmatch
import os
import random

import numpy as np

from feat.base.files import UserError
from feat.corpora import binaural_scenes
from feat.corpora.lists import SETS


def _demand(folder):
    """{set: [path]} that DEMAND's recordings would have."""
    return {
        name: [os.path.join(folder, room, binaural_scenes.DEMAND_CHANNEL) for room in places]
        for name, places in binaural_scenes.DEMAND.items()
    }


def find_noise(folder, seed=0):
    """{set: [path]} of recordings of noise: DEMAND's as published, those of tr/, cv/ and tt/, or else 3 : 1 : 1.

    Raises:
      UserError: there are none.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder; check --noise_folder")
    demand = _demand(folder)
    if all(os.path.exists(path) for paths in demand.values() for path in paths):
        return demand

    def audio(below):
        return sorted(
            os.path.join(where, name)
            for where, _, names in os.walk(below)
            for name in names
            if name.lower().endswith((".wav", ".flac")) and name[0] != "."
        )

    if all(os.path.isdir(os.path.join(folder, name)) for name in SETS):
        found = {name: audio(os.path.join(folder, name)) for name in SETS}
    else:
        paths = audio(folder)
        random.Random(f"{seed} noise").shuffle(paths)
        few = max(1, len(paths) // 5)
        found = {"tr": sorted(paths[2 * few :]), "cv": sorted(paths[:few]), "tt": sorted(paths[few : 2 * few])}
    empty = [name for name, paths in found.items() if not paths]
    if empty:
        raise UserError(f"{folder}: no recordings of noise for the set {empty[0]}; three wav or flac files are needed")
    return found


def ascending(values, name, count):
    """The `count` numbers of a list flag. Raises UserError if there are others, or they do not ascend."""
    try:
        numbers = [float(text) for text in values[name].value]
    except ValueError:
        numbers = []
    if len(numbers) != count or not np.isfinite(numbers).all() or numbers[0] > numbers[-1]:
        raise UserError(f"--{name} {','.join(values[name].value)}: {count} numbers are needed, the lower first")
    return numbers


PATTERNS = ("*.flac", "*.wav")


def find_speakers(folder, patterns=PATTERNS):
    """Utterances of a corpus with a folder for every talker; files may lie at any depth below it.

    Returns:
      {talker: [path relative to `folder`, with slashes]}, both sorted.

    Raises:
      UserError: there is no such folder, or fewer than two talkers have two utterances.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder; check --corpus_folder")
    speakers = {}
    for speaker in sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."):
        paths = []
        for below, _, names in os.walk(os.path.join(folder, speaker), followlinks=True):
            for name in names:
                if name[0] != "." and any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
                    paths.append(os.path.relpath(os.path.join(below, name), folder).replace(os.sep, "/"))
        if paths:
            speakers[speaker] = sorted(paths)
    able = sum(len(paths) > 1 for paths in speakers.values())
    if able < 2:
        raise UserError(
            f"{folder}: {able} talkers' folders with two files like {' or '.join(patterns)}, two are needed;"
            " check --corpus_folder and --pattern"
        )
    return speakers


# Noisy and clean recordings as they are written here, and as they are published.
NOISY_FOLDERS = {
    "train": (("train/noisy", "train/clean"), ("noisy_trainset_28spk_wav", "clean_trainset_28spk_wav")),
    "test": (("test/noisy", "test/clean"), ("noisy_testset_wav", "clean_testset_wav")),
}

AUDIO_EXTENSIONS = (".wav", ".flac")


def find_utterances(corpus_root, seed, fractions):
    """Utterances of a corpus with a folder for every talker, talkers divided between the sets.

    Args:
      corpus_root: holds tr/, cv/ and tt/ with talkers' folders, or talkers' folders, which are then divided.
        A talker's wav and flac files may lie in sub-folders.
      seed: integer, for the division.
      fractions: {set: share of the talkers}; shares of 1 in all.

    Returns:
      {set: {talker: [path relative to corpus_root, with slashes]}}.

    Raises:
      UserError: the folder is missing or holds no talkers, or a path holds a blank.
    """
    folders = _sub_folders(corpus_root)
    if set(SETS) & set(folders):
        return {set_name: _talkers(corpus_root, set_name) if set_name in folders else {} for set_name in SETS}
    talkers = _talkers(corpus_root, "")
    if not talkers:
        raise UserError(f"{corpus_root}: no talker's folder with wav or flac files; check --corpus_root")
    names = sorted(talkers)
    random.Random(f"{seed} sets").shuffle(names)
    utterances, begin, share = {}, 0, 0.0
    for set_name in SETS:
        share += fractions[set_name]
        end = round(share * len(names))
        utterances[set_name] = {name: talkers[name] for name in names[begin:end]}
        begin = end
    return utterances


def find_wsj0(wsj0_root):
    """The folder that the paths of the published lists, wsj0/..., are relative to.

    Takes `wsj0_root` or, if that is the folder wsj0 itself, the one above. Raises UserError if neither fits.
    """
    root = os.path.abspath(wsj0_root)
    if os.path.isdir(os.path.join(root, "wsj0")):
        return root
    if os.path.isdir(root) and os.path.basename(root) == "wsj0":
        return os.path.dirname(root)
    raise UserError(f"{wsj0_root}: holds no folder wsj0; give the folder above it as --wsj0_root")


def _sub_folders(folder):
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder; check --corpus_root")
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")


def _talkers(corpus_root, below):
    """{talker: sorted paths of wavs, relative to the root} of the talkers' folders in corpus_root/below."""
    talkers = {}
    for talker in _sub_folders(os.path.join(corpus_root, below)):
        paths = []
        for folder, _, names in os.walk(os.path.join(corpus_root, below, talker)):
            for name in names:
                if name.lower().endswith(AUDIO_EXTENSIONS) and name[0] != ".":
                    path = os.path.relpath(os.path.join(folder, name), corpus_root)
                    paths.append(path.replace(os.sep, "/"))
        for path in paths:
            if len(path.split()) > 1:
                raise UserError(f"{os.path.join(corpus_root, path)}: lists cannot hold blanks; rename it")
        if paths:
            talkers[talker] = sorted(paths)
    return talkers
