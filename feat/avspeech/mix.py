"""Mixes pieces of different videos and writes the tables.

    python feat/avspeech/mix.py --data_folder DATA --talkers 2

Pieces DATA/audio/*_part*.wav become DATA/mixed/<n>.wav, each the mean of its talkers' pieces, and train.csv, val.csv
and test.csv beside them. Videos, not pieces, are divided between the tables: as DATA/split.csv says (video, set), else
drawn from the seed. What a mixture is made of is drawn from the seed too; with --noise_folder a column says which
noise is in it. Pieces in DATA/corrupt.csv are left out.

--parity takes the reference's combinations, in its order and with its numbers: every P pieces of different videos,
the last 30 % of the files for validation, whose mixtures overwrite some of the training's where a combination was
left out; and its amplitudes where pieces end early, those of ffmpeg's amix.

Killed at any moment, the same command goes on where it was; Ctrl-C writes the tables of what is there.
"""

import csv
import functools
import glob
import itertools
import json
import math
import os
import random
import zlib
from dataclasses import dataclass

from feat.base.script import run_script

import numpy as np
from absl import flags

from feat.avspeech import tables
from feat.avspeech.clips import (
    AUDIO,
    ID_CHARACTERS,
    MIXED,
    PART_SAMPLES,
    SAMPLE_RATE,
    part_of,
    read_corrupt,
    stem_of,
    video_id,
)
from feat.avspeech.tables import Row, table_path, write_table
from feat.base.files import UserError, require_free_bytes
from feat.base.parallel import parallel_map
from feat.corpora.mixture_tree import claim_folder
from feat.signals.audio import read_pcm16, write_pcm16

BLOCK = 1024  # samples that ffmpeg's amix takes at once
DROPOUT_S = 2.0  # its time for raising the others when one has ended
REFERENCE_PREFIX = "../data/train/"
REFERENCE_NOISE = "../data/audio_set/audio/"
MANY_BYTES = 5e9  # of tables; beyond, the reference keeps one combination in ten
BYTES_PER_ROW = 90


@dataclass(frozen=True)
class _Mixing:
    """One mixture: its wav, those in it, and how they are added."""

    path: str
    sources: tuple
    parity: bool


def mix_mean(signals):
    """Mean of signals [samples], which are as if they went on with zeros: [samples of the longest], int16."""
    total = np.zeros(max(map(len, signals)))
    for signal in signals:
        total[: len(signal)] += signal
    return np.rint(total / len(signals)).astype(np.int16)


def mix_amix(signals, sample_rate=SAMPLE_RATE):
    """Mean of signals as ffmpeg's amix forms it: when one ends, the others grow to their own mean within 2 s.

    Args:
      signals: int16 [samples] each.
      sample_rate: Hz.

    Returns:
      int16 [samples of the longest]. ffmpeg's first block behind an end may be longer, which depends on how fast it
      gets its inputs; all others are equal.
    """
    signals = [np.asarray(signal, np.float64) for signal in signals]
    total = np.zeros(max(map(len, signals)))
    norms = [float(len(signals))] * len(signals)
    begin = 0
    while begin < len(total):
        active = [i for i, signal in enumerate(signals) if begin < len(signal)]
        end = min((begin // BLOCK + 1) * BLOCK, *(len(signals[i]) for i in active))
        for i in active:
            norms[i] = max(len(active), norms[i] - (end - begin) / (DROPOUT_S * sample_rate))
            total[begin:end] += signals[i][begin:end] / norms[i]
        begin = end
    return np.clip(np.rint(total), -32768, 32767).astype(np.int16)


def find_pieces(data_folder):
    """Stems of the pieces of sound that are not in the corrupt list, in order of their names.

    Raises:
      UserError: there are none.
    """
    stems = sorted(map(stem_of, glob.glob(os.path.join(glob.escape(os.path.join(data_folder, AUDIO)), "*_part*.wav"))))
    bad = {(problem.video, problem.part) for _, problem in read_corrupt(data_folder)}
    stems = [stem for stem in stems if not {(part_of(stem)[0], None), part_of(stem)} & bad]
    if not stems:
        raise UserError(f"{os.path.join(data_folder, AUDIO)}: no pieces *_part*.wav; run feat/avspeech/cut_audio.py")
    return stems


def split_pieces(stems, shares, seed, given=None):
    """Divides pieces by their videos.

    Args:
      stems: of the pieces.
      shares: {set: share of the videos}; train takes the others.
      seed: draws which.
      given: {video: set}; the others are drawn.

    Returns:
      {set: [stem]}, in the order of `stems`.
    """
    given = dict(given or {})
    videos = sorted({video_id(stem) for stem in stems} - given.keys())
    random.Random(f"{seed} split").shuffle(videos)
    begin = 0
    for name, share in shares.items():
        count = math.floor(share * len(videos) + 0.5) if not given else 0
        given.update(dict.fromkeys(videos[begin : begin + count], name))
        begin += count
    found = {name: [] for name in tables.SETS}
    for stem in stems:
        found[given.get(video_id(stem), "train")].append(stem)
    return found


def draw_combinations(stems, count, talkers, rng):
    """Draws `count` different sets of pieces of different videos, or as many as there are; [tuple of stems]."""
    by_video = {}
    for stem in stems:
        by_video.setdefault(video_id(stem), []).append(stem)
    if len(by_video) < talkers:
        return []
    # Elementary symmetric polynomial of the numbers of pieces: how many there are.
    ways = [1] + [0] * talkers
    for pieces in by_video.values():
        for k in range(talkers, 0, -1):
            ways[k] += ways[k - 1] * len(pieces)
    if ways[talkers] <= 2 * count:
        chosen = [
            combination
            for videos in itertools.combinations(sorted(by_video), talkers)
            for combination in itertools.product(*(by_video[video] for video in videos))
        ]
        rng.shuffle(chosen)
        return chosen[:count]
    videos, chosen = sorted(by_video), {}
    while len(chosen) < count:
        pieces = tuple(rng.choice(by_video[video]) for video in rng.sample(videos, talkers))
        chosen.setdefault(tuple(sorted(pieces)), pieces)
    return list(chosen.values())


def reference_combinations(files, talkers, limit=None, first=0, rng=None, drop=0.9):
    """The reference's combinations of files, with the numbers of their mixtures: yields (number, files).

    Args:
      files: names that start with the 11 characters of a video's id.
      talkers: of a mixture.
      limit: combinations to look at, those of one video counted; None: all.
      first: number of the first.
      rng: random.Random for leaving out combinations where there are too many.
      drop: their share then.
    """
    many = len(files) ** talkers / math.factorial(talkers) * BYTES_PER_ROW > MANY_BYTES
    for number, chosen in enumerate(itertools.islice(itertools.combinations(files, talkers), limit), start=first):
        if len({os.path.basename(name)[:ID_CHARACTERS] for name in chosen}) < talkers:
            continue
        if many and rng is not None and rng.random() < drop:
            continue
        yield number, chosen


def reference_rows(stems, talkers, validation_share=0.3, limit=None, seed=0, prefix=REFERENCE_PREFIX):
    """The reference's tables of pieces: {"train": [Row], "val": [Row]}, with its paths and its clash of numbers."""
    count = int(validation_share * len(stems))
    sides = {"train": stems[: len(stems) - count], "val": stems[len(stems) - count :]}
    rng = random.Random(f"{seed} combinations")
    rows, first = {}, 0
    for name, some in sides.items():
        found = reference_combinations(some, talkers, limit, first, rng)
        rows[name] = [_row(chosen, f"{prefix}{MIXED}/{number}.wav", prefix) for number, chosen in found]
        first = len(rows[name])
    return rows


def _row(stems, mixed, prefix="", noises=()):
    return Row(
        tuple(f"{prefix}{part_of(stem)[0]}.mp4" for stem in stems),
        tuple(f"{prefix}{AUDIO}/{stem}.wav" for stem in stems),
        mixed,
        tuple(noises),
    )


def drawn_rows(pieces, counts, talkers, seed):
    """{set: [Row]} of {set: stems}; mixtures are numbered through all sets."""
    rows, number = {}, 0
    for name, stems in pieces.items():
        rng = random.Random(f"{seed} {name} {talkers} talkers")
        chosen = draw_combinations(stems, counts[name], talkers, rng)
        rows[name] = [_row(some, f"{MIXED}/{number + i}.wav") for i, some in enumerate(chosen)]
        number += len(chosen)
    return rows


def with_noise(rows, noises, seed):
    """Rows with noise: max(1, int(a normal number of mean 1 and deviation 1)) pieces of it, none twice in a row."""
    rng = random.Random(f"{seed} noise")
    noisy = []
    for row in rows:
        count = min(len(noises), max(1, int(rng.gauss(1, 1))))
        noisy.append(Row(row.videos, row.audios, row.mixed, tuple(rng.sample(noises, count))))
    return noisy


def read_split(path):
    """{video: set} of a table with columns video and set.

    Raises:
      UserError: it is no such table, or names another set than train, val or test.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            split = {row["video"]: row["set"] for row in csv.DictReader(file)}
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a table with columns video,set ({error}); mend or remove it") from error
    other = sorted(set(split.values()) - set(tables.SETS))
    if other:
        raise UserError(f"{path}: a set {other[0]!r}; {', '.join(tables.SETS)} are needed")
    return split


def make_mixtures(data_folder, rows_of_set, talkers, settings, *, prefix="", noise=False, parity=False,
                  overwrite=False, num_workers=0):  # fmt: skip
    """Writes the mixtures of rows that are missing, then the tables.

    Args:
      data_folder: see feat/avspeech/clips.py.
      rows_of_set: {set: [Row]}.
      talkers: of a mixture.
      settings: {name: value} that the rows depend on.
      prefix: what the paths in the rows start with, in place of the data folder.
      noise: whether the tables have its column.
      parity: add as ffmpeg's amix.
      overwrite: replace mixtures that were made with other settings.
      num_workers: processes; 0 takes one for every core.

    Returns:
      The number of mixtures.
    """
    rows = [row for some in rows_of_set.values() for row in some]
    everything = zlib.crc32(json.dumps([[row.audios, row.mixed, row.noises] for row in rows]).encode())
    paths = {name: table_path(data_folder, name) for name in rows_of_set}
    folder = os.path.join(data_folder, MIXED)
    claim_folder(folder, settings | {"rows": everything}, overwrite, companions=paths.values())
    jobs = {}
    for row in rows:  # of two mixtures with one number the later stays, as in the reference
        sources = tuple(place(data_folder, path, prefix) for path in row.audios + row.noises)
        jobs[row.mixed] = _Mixing(place(data_folder, row.mixed, prefix), sources, parity)
    missing = [job for job in jobs.values() if not os.path.exists(job.path)]
    require_free_bytes(folder, len(missing) * (2 * PART_SAMPLES + 44), "the mixtures")
    try:
        parallel_map(_write_mixture, missing, num_workers, "mixtures")
    except KeyboardInterrupt:
        _write_tables(data_folder, paths, rows_of_set, talkers, noise, prefix, only_made=True)
        raise
    _write_tables(data_folder, paths, rows_of_set, talkers, noise, prefix)
    return len(jobs)


def place(data_folder, path, prefix=""):
    """Where a path of a table is on disk."""
    if path.startswith(REFERENCE_NOISE):
        return os.path.join(data_folder, "..", path.removeprefix("../data/"))
    return os.path.join(data_folder, path.removeprefix(prefix))


def _write_tables(data_folder, paths, rows_of_set, talkers, noise, prefix, only_made=False):
    for name, rows in rows_of_set.items():
        if only_made:
            rows = [row for row in rows if os.path.exists(place(data_folder, row.mixed, prefix))]
        write_table(paths[name], rows, talkers, noise)


def _write_mixture(job):
    """Mixes one _Mixing."""
    signals = [read_pcm16(path, SAMPLE_RATE) for path in job.sources]
    if job.parity:
        signals[0] = signals[0][:PART_SAMPLES]
    write_pcm16(job.path, (mix_amix if job.parity else mix_mean)(signals), SAMPLE_RATE)


def define_flags():
    flags.DEFINE_string("data_folder", "faces", "folder of the clips and pieces")
    flags.DEFINE_integer("talkers", 2, "talkers of a mixture", lower_bound=1, upper_bound=8)
    flags.DEFINE_integer("seed", 0, "draws the split, the mixtures and the noise")
    for name, help_text in (("train", "twice the number of pieces"), ("val", "half of them"), ("test", "half of them")):
        flags.DEFINE_integer(f"{name}_mixtures", None, f"mixtures of {name}.csv; default: {help_text}", lower_bound=0)
    flags.DEFINE_float("validation_size", 0.3, "share of the videos, with --parity of the pieces, for val.csv",
                       lower_bound=0, upper_bound=1)  # fmt: skip
    flags.DEFINE_float("test_size", 0.0, "share of the videos for test.csv", lower_bound=0, upper_bound=1)
    flags.DEFINE_string("split", None, "table of video,set; default: split.csv of the data folder, if there is one")
    flags.DEFINE_string("noise_folder", None, "folder in the data folder of noise to add, see feat/avspeech/noise.py")
    flags.DEFINE_bool("parity", False, "the reference's combinations, numbers, paths and amplitudes")
    flags.DEFINE_integer("dataset_size", None, "with --parity: combinations of a table to look at; default: all")
    flags.DEFINE_bool("dry_run", False, "say how many mixtures and bytes it would be, and end")
    flags.DEFINE_bool("overwrite", False, "replace mixtures made with other settings or from other pieces")
    flags.DEFINE_integer("num_workers", 0, "processes; 0: one for every core", lower_bound=0)


def main(_):
    values = flags.FLAGS
    folder, talkers, seed = values.data_folder, values.talkers, values.seed
    stems = find_pieces(folder)
    settings = dict(talkers=talkers, seed=seed, parity=values.parity)
    prefix = REFERENCE_PREFIX if values.parity else ""
    if values.parity:
        rows = reference_rows(stems, talkers, values.validation_size, values.dataset_size, seed)
    else:
        given = values.split or os.path.join(folder, "split.csv")
        split = read_split(given) if values.split or os.path.exists(given) else None
        pieces = split_pieces(stems, dict(val=values.validation_size, test=values.test_size), seed, split)
        counts = {}
        for name, factor in (("train", 2), ("val", 0.5), ("test", 0.5)):
            asked = values[f"{name}_mixtures"].value
            counts[name] = math.ceil(factor * len(pieces[name])) if asked is None else asked
            videos = len({video_id(stem) for stem in pieces[name]})
            if asked and videos < talkers:
                raise UserError(f"{folder}: {videos} videos for {name}.csv, {talkers} are needed for a mixture")
        rows = drawn_rows(pieces, counts, talkers, seed)
        rows = {name: some for name, some in rows.items() if some or name != "test"}
    if not any(rows.values()):
        raise UserError(f"{folder}: {len(stems)} pieces of too few videos for mixtures of {talkers} talkers")
    if values.noise_folder:
        noises = sorted(glob.glob(os.path.join(glob.escape(values.noise_folder), "*.wav")))
        if not noises:
            raise UserError(f"{values.noise_folder}: no wavs of noise; make them with feat/avspeech/noise.py")
        named = functools.partial(os.path.relpath, start=folder)
        noises = [REFERENCE_NOISE + os.path.basename(p) if values.parity else named(p) for p in noises]
        rows = {name: with_noise(some, noises, f"{seed} {name}") for name, some in rows.items()}
    total = sum(map(len, rows.values()))
    said = ", ".join(f"{len(some)} for {name}" for name, some in rows.items())
    if values.dry_run:
        print(f"{len(stems)} pieces; {total} mixtures, {said}; {total * 2 * PART_SAMPLES / 1e9:.2f} GB")
        return
    make_mixtures(
        folder, rows, talkers, settings, prefix=prefix, noise=bool(values.noise_folder), parity=values.parity,
        overwrite=values.overwrite, num_workers=values.num_workers,
    )  # fmt: skip
    print(f"{os.path.join(folder, MIXED)}: {total} mixtures of {talkers} talkers, {said}")


if __name__ == "__main__":
    define_flags()
    run_script(main)
