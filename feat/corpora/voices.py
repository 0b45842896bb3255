"""The built-in corpus: synthetic talkers, what they say, and their mixtures. See feat/voices.py, which makes it."""

import importlib.util
import json
import os
import random
import struct
import subprocess
import sys
import time
import zlib
from dataclasses import dataclass

import numpy as np

from feat.base.files import UserError, require_free_bytes, write_text
from feat.base.parallel import parallel_map
from feat.corpora.lists import SETS, names_path, rate_folder, write_mixture_lines
from feat.corpora.mixture_tree import BYTES_PER_SAMPLE, MixtureTree, claim_folder, file_names, missing_lines, write_tree
from feat.corpora.sentences import SENTENCES
from feat.signals.audio import resample, wav_info, write_pcm16
from feat.signals.mixing import draw_sets

ENGINE_RATE_HZ = 22050
SENTENCES_PER_UTTERANCE = 2
LEVEL_DB = -26  # of an utterance, rms against full scale
HIGHEST_PEAK = 0.999
LARGEST_PEAK = 3  # over the 99th percentile of the sample sizes; most talkers stay between 1.7 and 2.5
LONGEST_MEAN_S = 6.0  # an upper estimate of the mean length of an utterance, for the disk

DIALECTS = (
    "en", "en-US", "en-GB-scotland", "en-GB-x-rp", "en-029", "en-GB-x-gbclan", "en-GB-x-gbcwmd", "en-US-nyc",
)  # fmt: skip

# Chosen from 320 drawn voices of each sex for being far from each other in speaker embedding, pitch and
# long-term spectrum.
CHOSEN_SEEDS = {
    "m": (139, 145, 312, 182, 0, 37, 261, 293, 86, 171, 239, 225, 292, 39, 289,
          187, 218, 26, 4, 110, 114, 287, 298, 59, 158, 17, 241, 217, 80, 221),
    "f": (115, 140, 88, 141, 203, 218, 26, 45, 217, 61, 57, 204, 235, 9, 7,
          284, 202, 1, 48, 200, 165, 292, 103, 6, 119, 84, 306, 272, 42, 66),
}  # fmt: skip
FIRST_FURTHER_SEED = 2000  # even, see draw_voice


@dataclass(frozen=True)
class Talker:
    """A synthetic talker. `variant`: text of an eSpeak NG voice file."""

    name: str
    sex: str
    set_name: str
    dialect: str
    words_per_minute: int
    variant: str


@dataclass(frozen=True)
class _Speech:
    """What one talker says: {wav path: text}, in the order of speaking, at `sample_rate` Hz."""

    talker: Talker
    texts: dict[str, str]
    sample_rate: int


def make_corpus(
    folder,
    *,
    seed=0,
    talkers_per_set,
    mixtures_per_set,
    utterances_per_talker=6,
    sample_rate=8000,
    talkers=2,
    overwrite=False,
    num_workers=0,
):
    """Makes the built-in corpus in `folder`, or what is still missing of it.

    Args:
      folder: see the head of this file for what it will hold.
      seed: integer; draws who says what and the mixtures. The voices do not depend on it.
      talkers_per_set: {"tr": number, "cv": number, "tt": number} of talkers, half men and half women.
      mixtures_per_set: {set: number} of mixtures.
      utterances_per_talker: of two sentences each, about 5 s.
      sample_rate: Hz of all wavs.
      talkers: talkers of a mixture, 2 or 3.
      overwrite: replace what was made in the folder with other settings.
      num_workers: processes; 0 takes one for every core.

    Returns:
      One line that sums up what the folder holds.

    Raises:
      UserError: eSpeak NG is not installed, the disk is too small, the folder holds a corpus with other
        settings, or a set has fewer talkers than a mixture.
    """
    started = time.monotonic()
    speeches = [
        _speech(folder, talker, utterances_per_talker, sample_rate, seed) for talker in draw_talkers(talkers_per_set)
    ]
    lines_of_set = draw_sets(_utterances_of_set(folder, speeches), mixtures_per_set, talkers, seed)
    tree = MixtureTree(folder, folder, os.path.join(folder, "lists"), sample_rates=(sample_rate,))

    voices = {
        "seed": seed,
        "talkers": {name: talkers_per_set[name] for name in SETS},
        "utterances_per_talker": utterances_per_talker,
        "sample_rate": sample_rate,
        "sentences": zlib.crc32(repr(SENTENCES).encode()),
    }
    mixtures = {"mixtures": {name: mixtures_per_set[name] for name in SETS}, **voices}
    lists = {n: [names_path(tree.lists_folder, set_name, n) for set_name in SETS] for n in (2, 3)}
    claim_folder(os.path.join(folder, "voices"), voices, overwrite, companions=lists[2] + lists[3])
    claim_folder(os.path.join(folder, f"{talkers}speakers"), mixtures, overwrite, companions=lists[talkers])

    _require_disk(folder, tree, speeches, lines_of_set)
    _speak_missing(speeches, num_workers)
    _write_tables(os.path.join(folder, "voices"), speeches)
    for set_name, lines in lines_of_set.items():
        if lines:
            write_mixture_lines(tree.lists_folder, set_name, lines)
    write_tree(tree, lines_of_set, num_workers=num_workers)

    wavs = [path for speech in speeches for path in speech.texts]
    hours = sum(wav_info(path).seconds for path in wavs) / 3600
    return (
        f"{folder}: {len(speeches)} talkers, {len(wavs)} utterances, {hours:.2f} hours,"
        f" {sum(mixtures_per_set.values())} mixtures; {time.monotonic() - started:.0f} s"
    )


def draw_talkers(talkers_per_set):
    """Talkers of all sets, men and women in turn; no one is in two sets.

    The chosen voices come first and go to tt, then cv, then tr, so that the talkers of a test stay the
    same, and far from each other, whatever the size of the training set.

    Args:
      talkers_per_set: {set: number}.

    Returns:
      [Talker], in the order tt, cv, tr.
    """
    talkers = []
    for set_name in reversed(SETS):
        for _ in range(talkers_per_set[set_name]):
            pair, sex = len(talkers) // 2, "mf"[len(talkers) % 2]
            chosen = CHOSEN_SEEDS[sex]
            seed = chosen[pair] if pair < len(chosen) else FIRST_FURTHER_SEED + len(talkers)
            talkers.append(draw_voice(sex, seed, set_name))
    return talkers


def draw_voice(sex, seed, set_name):
    """A talker drawn from (sex, seed) only, the same on every platform.

    Streams are numbered by the seed, for women by the seed and 1000 more. Seeds are below 1000, or else
    even for men and odd for women, so that no two talkers share a stream.
    """
    stream = random.Random(seed + (1000 if sex == "f" else 0))

    def uniform(low, high):
        return low + (high - low) * stream.random()

    pitch_hz = uniform(62, 112) if sex == "m" else uniform(118, 190)
    highest_pitch_hz = pitch_hz * uniform(1.25, 1.7)
    tract = uniform(0.84, 1.04) if sex == "m" else uniform(1.02, 1.26)  # its shortness scales every formant
    tilt, width = uniform(-25, 35), uniform(80, 160)
    name = f"{sex}{seed:03d}"
    variant = [
        "language variant",
        f"name {name}",
        f"gender {'male' if sex == 'm' else 'female'}",
        f"pitch {pitch_hz:.0f} {highest_pitch_hz:.0f}",
        f"flutter {uniform(2, 12):.0f}",
        f"roughness {uniform(0, 4):.0f}",
        f"voicing {uniform(75, 125):.0f}",
        f"consonants {uniform(65, 125):.0f} {uniform(65, 125):.0f}",
    ]
    for formant in range(9):
        frequency = 100 * tract * uniform(0.93, 1.07)
        height = np.clip(100 - tilt * formant / 4 + uniform(-8, 8), 40, 140)
        breadth = np.clip(width + uniform(-15, 15), 60, 180)
        variant.append(f"formant {formant} {frequency:.0f} {height:.0f} {breadth:.0f}")
    if stream.random() < 0.30:
        variant.append(f"klatt {int(uniform(1, 6.99))}")
    if stream.random() < 0.50:
        tone = [f"{hz} {uniform(80, 255):.0f}" for hz in (400, 1200, 2600, 4500)]
        variant.append("tone " + " ".join(tone))
    dialect = DIALECTS[int(uniform(0, 7.99))]
    return Talker(name, sex, set_name, dialect, int(uniform(135, 195)), "\n".join(variant) + "\n")


def draw_texts(sentences, count, rng):
    """`count` texts of two sentences each; no sentence comes again before all have been said."""
    texts, deck = [], []
    while len(texts) < count:
        if len(deck) < SENTENCES_PER_UTTERANCE:
            deck = rng.sample(sentences, len(sentences))
        texts.append(" ".join(deck.pop() for _ in range(SENTENCES_PER_UTTERANCE)))
    return texts


def shape_utterance(samples, sample_rate):
    """Cuts the silence around an utterance and sets its rate and level.

    Args:
      samples: int16 [samples], as the engine gives them.
      sample_rate: Hz of the result.

    Returns:
      float64 [samples] with 50 ms before and 100 ms after the speech, at -26 dB rms, or less where that would clip.
    """
    loud = np.flatnonzero(np.abs(samples.astype(int)) > 65)
    begin, end = max(0, loud[0] - ENGINE_RATE_HZ // 20), loud[-1] + ENGINE_RATE_HZ // 10
    x = samples[begin:end] / 32768
    # Some voices click now and then, up to 30 dB above their speech; every mixture would be scaled to that.
    limit = LARGEST_PEAK * np.percentile(np.abs(x), 99)
    x = resample(np.clip(x, -limit, limit), ENGINE_RATE_HZ, sample_rate)
    return x * min(10 ** (LEVEL_DB / 20) / np.sqrt(np.mean(x**2)), HIGHEST_PEAK / np.abs(x).max())


def _speech(folder, talker, utterances, sample_rate, seed):
    """What `talker` says and where it goes. The texts depend on the seed and the talker only."""
    rng = random.Random(f"{seed} {talker.name}")
    wavs = os.path.join(folder, "voices", rate_folder(sample_rate), talker.set_name, talker.name)
    texts = draw_texts(SENTENCES[talker.set_name], utterances, rng)
    return _Speech(
        talker,
        {os.path.join(wavs, f"{talker.name}_{k:02d}.wav"): text for k, text in enumerate(texts)},
        sample_rate,
    )


def _utterances_of_set(folder, speeches):
    """{set: {talker: [wav path relative to the folder, with slashes]}} for drawing mixtures."""
    utterances = {set_name: {} for set_name in SETS}
    for speech in speeches:
        paths = [os.path.relpath(path, folder).replace(os.sep, "/") for path in speech.texts]
        utterances[speech.talker.set_name][speech.talker.name] = paths
    return utterances


def _missing_wavs(speech):
    folder = os.path.dirname(next(iter(speech.texts)))
    present = file_names(folder)
    return [path for path in speech.texts if os.path.basename(path) not in present]


def _require_disk(folder, tree, speeches, lines_of_set):
    """Says how much is going to be written. Raises UserError if the disk cannot hold it."""
    signals = sum(len(_missing_wavs(speech)) for speech in speeches)
    for set_name, lines in lines_of_set.items():
        signals += sum(len(line.paths) + 1 for line in missing_lines(tree, set_name, lines))
    needed = int(signals * LONGEST_MEAN_S * tree.sample_rates[0] * BYTES_PER_SAMPLE)
    require_free_bytes(folder, needed, "the wavs")
    if needed:
        print(f"{folder}: up to {needed / 1e6:,.0f} MB will be written", flush=True)


def _speak_missing(speeches, num_workers):
    """Makes the utterances that are not there."""
    jobs = [speech for speech in speeches if _missing_wavs(speech)]
    if jobs and importlib.util.find_spec("espeakng_loader") is None:
        raise UserError("eSpeak NG is not installed; get it with: pip install -e .[corpus]")
    parallel_map(_speak, jobs, num_workers, "talkers")


def _speak(speech):
    """Has one talker say everything, in a process of its own, and writes the wavs that are missing.

    Everything, because a text's audio depends on what the engine said before.
    """
    talker = speech.talker
    request = {
        "dialect": talker.dialect,
        "variant": talker.variant,
        "words_per_minute": talker.words_per_minute,
        "lines": list(speech.texts.values()),
    }
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "espeak.py")
    result = subprocess.run(
        [sys.executable, program], input=json.dumps(request).encode(), capture_output=True, check=False
    )
    if result.returncode:
        reason = (result.stderr.decode(errors="replace").strip().splitlines() or ["it crashed"])[-1]
        raise UserError(f"talker {talker.name}: eSpeak NG failed with status {result.returncode}: {reason}")
    missing = set(_missing_wavs(speech))
    for path, samples in zip(speech.texts, _split_audio(result.stdout), strict=True):
        if path in missing:
            write_pcm16(path, shape_utterance(samples, speech.sample_rate), speech.sample_rate)


def _split_audio(stream):
    """int16 arrays of the utterances in what feat/corpora/espeak.py wrote."""
    utterances, start = [], 0
    while start < len(stream):
        (size,) = struct.unpack_from("<q", stream, start)
        utterances.append(np.frombuffer(stream, "<i2", size // 2, start + 8))
        start += 8 + size
    return utterances


def _write_tables(folder, speeches):
    """Writes talkers.tsv and utterances.tsv."""
    talkers = ["talker\tset\tsex\tdialect\twords_per_minute"]
    utterances = ["utterance\ttalker\tset\ttext"]
    for speech in speeches:
        talker = speech.talker
        talkers.append(f"{talker.name}\t{talker.set_name}\t{talker.sex}\t{talker.dialect}\t{talker.words_per_minute}")
        for path, text in speech.texts.items():
            stem = os.path.splitext(os.path.basename(path))[0]
            utterances.append(f"{stem}\t{talker.name}\t{talker.set_name}\t{text}")
    write_text(os.path.join(folder, "talkers.tsv"), "\n".join(talkers) + "\n")
    write_text(os.path.join(folder, "utterances.tsv"), "\n".join(utterances) + "\n")
