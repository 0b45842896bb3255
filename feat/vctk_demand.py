"""Makes noisy and clean speech in the layout of VCTK-DEMAND, from the published set or from any speech and noise.

The published recordings (VoiceBank-DEMAND, 48 kHz), resampled:

    python feat/vctk_demand.py --published DS_10283_2791 --output_folder data/VCTK_DEMAND

A folder with tr/ and tt/ with a folder for every talker, or with talkers' folders, which are then divided; noise is
that of --noise_folder, or made here:

    python feat/vctk_demand.py --corpus_root corpus/voices/wav16k --output_folder data/VCTK_DEMAND

Both write

    data/VCTK_DEMAND/{train,test}/{noisy,clean}/NAME.wav
    data/VCTK_DEMAND/{train,test}/manifest.csv             what was mixed: utterance, noise, its place, dB

Sets share neither talkers nor noise. Killed at any moment, the same command goes on where it was.
"""

import csv
import functools
import io
import os
import random
import time
import zlib
from dataclasses import asdict, dataclass
from typing import NamedTuple

from feat.base.script import run_script

import numpy as np
from absl import flags

from feat.base.files import UserError, require_free_bytes, write_text
from feat.base.parallel import parallel_map
from feat.corpora.find import NOISY_FOLDERS, find_noise, find_utterances
from feat.corpora.mixture_tree import BYTES_PER_SAMPLE, claim_folder, file_names
from feat.signals.audio import read_mono, read_resampled, resample, wav_info, write_pcm16
from feat.signals.mixing import active_level
from feat.signals.noises import write_recordings

SET_OF_SPLIT = {"train": "tr", "test": "tt"}
HIGHEST_PEAK = 0.99
NOISES_PER_KIND = 4  # of those made here, in every set


@dataclass(frozen=True)
class NoisyCorpus:
    """Noisy speech and how it is made.

    Attributes:
        corpus_root: what the paths of utterances are relative to.
        output_folder: holds train/ and test/.
        sample_rate: Hz.
        counts: {split: recordings}.
        snr_db: {split: [dB of the speech over the noise]}, one of them is drawn.
        seed: integer.
    """

    corpus_root: str
    output_folder: str
    sample_rate: int
    counts: dict
    snr_db: dict
    seed: int = 0

    def path(self, split, kind, name):
        return os.path.join(self.output_folder, split, kind, name + ".wav")


class Recording(NamedTuple):
    """One noisy recording; `begin`: first sample of the noise in its file, at the rate of the corpus."""

    name: str
    utterance: str
    noise: str
    begin: int
    snr_db: float


def draw_recordings(corpus, split, utterances, noises):
    """[Recording] of a split; each depends on the seed and its number alone.

    Args:
        utterances: {talker: [path]}.
        noises: {path: samples}.
    """
    recordings = []
    everybody, paths = sorted(utterances), sorted(noises)
    for number in range(corpus.counts[split]):
        rng = random.Random(f"{corpus.seed} {split} {number}")
        utterance = rng.choice(utterances[rng.choice(everybody)])
        noise = rng.choice(paths)
        stem = os.path.splitext(os.path.basename(utterance))[0]
        begin, snr_db = rng.randrange(noises[noise]), rng.choice(corpus.snr_db[split])
        recordings.append(Recording(f"{stem}_{number:05d}", utterance, noise, begin, snr_db))
    return recordings


def mix_noise(speech, noise, begin, snr_db, sample_rate):
    """Speech [samples] in noise, whose file comes again where it ends.

    The ratio is that of the active level of the speech (ITU-T P.56) to the mean power of the noise.

    Returns:
        (noisy, clean) float64 [samples], made quieter together where they would be clipped.
    """
    level, _ = active_level(speech, sample_rate)
    piece = np.take(np.asarray(noise, np.float64), np.arange(begin, begin + len(speech)), mode="wrap")
    noisy = speech + piece * np.sqrt(level / max(np.mean(piece**2), 1e-12) / 10 ** (snr_db / 10))
    factor = min(1.0, HIGHEST_PEAK / max(np.abs(noisy).max(), np.abs(speech).max()))
    return factor * noisy, factor * speech


def make_corpus(corpus, utterances, noises, overwrite=False, num_workers=0):
    """Writes the recordings of a NoisyCorpus, or what is missing of them.

    Args:
        utterances: {split: {talker: [path]}}.
        noises: {split: [path]}; a split without any gets noise made here.
        overwrite: replace what was made in the folder with other settings.
        num_workers: processes; 0 takes one for every core.

    Returns:
        One line that sums up what was done.

    Raises:
        UserError: a split has no talkers, a file is unusable, or the folder holds something else.
    """
    started = time.monotonic()
    for split in corpus.counts:
        if not utterances[split]:
            raise UserError(f"{corpus.corpus_root}: no talkers for the set {SET_OF_SPLIT[split]}; check --corpus_root")
    settings = asdict(corpus) | {"corpus_root": os.path.abspath(corpus.corpus_root), "noises": noises}
    settings["utterances"] = zlib.crc32(repr(utterances).encode())
    del settings["output_folder"]
    claim_folder(corpus.output_folder, settings, overwrite)
    jobs = []
    for split in corpus.counts:
        paths = noises[split] or _made_noise(corpus, split, utterances[split])
        samples = {path: _samples(path, corpus.sample_rate) for path in paths}
        recordings = draw_recordings(corpus, split, utterances[split], samples)
        present = [file_names(os.path.dirname(corpus.path(split, kind, ""))) for kind in ("noisy", "clean")]
        jobs += [(split, each) for each in recordings if not all(each.name + ".wav" in names for names in present)]
        rows = io.StringIO()
        writer = csv.writer(rows, lineterminator="\n")
        writer.writerows([Recording._fields, *recordings])
        write_text(os.path.join(corpus.output_folder, split, "manifest.csv"), rows.getvalue())
    seconds = sum(wav_info(os.path.join(corpus.corpus_root, each.utterance)).seconds for _, each in jobs)
    require_free_bytes(corpus.output_folder, int(2 * seconds * corpus.sample_rate * BYTES_PER_SAMPLE), "the wavs")
    parallel_map(functools.partial(_write, corpus), jobs, num_workers, "noisy speech")
    return (
        f"{corpus.output_folder}: {' and '.join(f'{n} recordings to {s}' for s, n in corpus.counts.items())},"
        f" {len(jobs)} made now; {time.monotonic() - started:.0f} s"
    )


def resample_published(folder, output_folder, sample_rate, overwrite=False, num_workers=0):
    """Writes the published recordings at `sample_rate` Hz, or what is missing of them; gives a line that sums up.

    Raises:
        UserError: they are not there or unusable.
    """
    started = time.monotonic()
    jobs, total = [], 0
    claim_folder(output_folder, {"published": os.path.abspath(folder), "sample_rate": sample_rate}, overwrite)
    for layouts in NOISY_FOLDERS.values():
        for number, wanted in enumerate(layouts[0]):
            choices = [os.path.join(folder, pair[number]) for pair in layouts]
            source = next((choice for choice in choices if os.path.isdir(choice)), choices[-1])
            names = sorted(name for name in file_names(source) if name.lower().endswith(".wav") and name[0] != ".")
            if not names:
                raise UserError(f"{source}: no wavs in it; check --published")
            target = os.path.join(output_folder, wanted)
            present = file_names(target)
            jobs += [(os.path.join(source, n), os.path.join(target, n)) for n in names if n not in present]
            total += len(names)
    seconds = sum(wav_info(source).seconds for source, _ in jobs)
    require_free_bytes(output_folder, int(seconds * sample_rate * BYTES_PER_SAMPLE), "the wavs")
    parallel_map(functools.partial(_resample, sample_rate), jobs, num_workers, "resample")
    return (
        f"{output_folder}: {total} wavs of {sample_rate} Hz, {len(jobs)} made now; {time.monotonic() - started:.0f} s"
    )


def _resample(sample_rate, job):
    source, target = job
    # Resampling may overshoot what was at full scale.
    write_pcm16(target, np.clip(read_resampled(source, sample_rate), -1, 1), sample_rate)


def _write(corpus, job):
    split, recording = job
    rate = corpus.sample_rate
    speech = read_resampled(os.path.join(corpus.corpus_root, recording.utterance), rate).astype(np.float64)
    noise = read_mono(recording.noise)
    noise = resample(noise, wav_info(recording.noise).sample_rate, rate)
    try:
        signals = mix_noise(speech, noise, recording.begin, recording.snr_db, rate)
    except ValueError as error:
        raise UserError(f"{os.path.join(corpus.corpus_root, recording.utterance)}: {error}; take it out") from error
    for kind, signal in zip(("noisy", "clean"), signals):
        write_pcm16(corpus.path(split, kind, recording.name), signal, rate)


def _samples(path, sample_rate):
    info = wav_info(path)
    return -(-info.frames * sample_rate // info.sample_rate)


def _made_noise(corpus, split, utterances):
    """Paths of noise made for a split, babble of its own talkers."""
    speech = [os.path.join(corpus.corpus_root, path) for paths in utterances.values() for path in paths]
    folder = os.path.join(corpus.output_folder, "made_noise", split)
    return write_recordings(folder, speech, corpus.sample_rate, corpus.seed + (split == "test"), NOISES_PER_KIND)


def define_flags():
    flags.DEFINE_string("published", None, "folder of VoiceBank-DEMAND as it is published, to be resampled")
    flags.DEFINE_string("corpus_root", None, "speech to mix: tr/ and tt/ with talkers' folders, or talkers' folders")
    flags.DEFINE_string("noise_folder", None, "DEMAND, or any recordings of noise; default: made")
    flags.DEFINE_string("output_folder", None, "folder to write to")
    flags.DEFINE_integer("sample_rate", 16000, "Hz of the wavs", lower_bound=4000)
    flags.DEFINE_integer("train_recordings", 11572, "noisy recordings to train on", lower_bound=2)
    flags.DEFINE_integer("test_recordings", 824, "noisy recordings to test on", lower_bound=1)
    flags.DEFINE_list("train_snr_db", ["0", "5", "10", "15"], "dB of the speech over the noise in training")
    flags.DEFINE_list("test_snr_db", ["2.5", "7.5", "12.5", "17.5"], "those of the test")
    flags.DEFINE_integer("seed", 0, "draws the recordings")
    flags.DEFINE_bool("overwrite", False, "replace what was made in the folder with other settings")
    flags.DEFINE_integer("num_workers", 0, "processes; 0: one for every core", lower_bound=0)


def _decibels(values, name):
    try:
        levels = [float(text) for text in values[name].value]
    except ValueError:
        levels = []
    if not levels or not np.isfinite(levels).all():
        raise UserError(f"--{name} {','.join(values[name].value)}: give one or more numbers of dB")
    return levels


def main(_):
    values = flags.FLAGS
    if not values.output_folder or bool(values.published) == bool(values.corpus_root):
        raise UserError("give --output_folder, and either --published or --corpus_root; see the examples in --help")
    if values.published:
        print(
            resample_published(
                values.published, values.output_folder, values.sample_rate, values.overwrite, values.num_workers
            )
        )
        return
    corpus = NoisyCorpus(
        values.corpus_root,
        values.output_folder,
        values.sample_rate,
        {split: values[f"{split}_recordings"].value for split in SET_OF_SPLIT},
        {split: _decibels(values, f"{split}_snr_db") for split in SET_OF_SPLIT},
        values.seed,
    )
    divided = find_utterances(values.corpus_root, values.seed, {"tr": 0.8, "cv": 0.1, "tt": 0.1})
    noise = find_noise(values.noise_folder, values.seed) if values.noise_folder else {}
    print(
        make_corpus(
            corpus,
            {split: divided[name] for split, name in SET_OF_SPLIT.items()},
            {split: noise.get(name, []) for split, name in SET_OF_SPLIT.items()},
            values.overwrite,
            values.num_workers,
        )
    )


if __name__ == "__main__":
    define_flags()
    run_script(main)
