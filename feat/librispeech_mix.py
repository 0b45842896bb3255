"""Makes triplets for target-speaker extraction from LibriSpeech, or any folder with a sub-folder for every talker.

    python feat/librispeech_mix.py --corpus_folder LibriSpeech/train-clean-100 --output_folder triplets/tr
    python feat/librispeech_mix.py --corpus_folder LibriSpeech/test-clean --output_folder triplets/tt --test

A triplet is a mixture of two talkers, the target in it, and another utterance of the target's talker to enrol:

    triplets/tr/part/TARGET_NOISE_NNNNNN_SEGMENT-mixed.wav, -target.wav, -ref.wav     with --test no _SEGMENT
    triplets/tr/manifest.jsonl       a line for every mixture: its files, talkers, ratio, gains, samples, seed
    triplets/tr/skipped.jsonl        what could not be used, and why

Training mode cuts pauses out and mixes segments of --audio_len seconds; --test mixes whole utterances. Every
triplet depends on --seed and its number alone. Killed at any moment, the same command goes on where it was.
"""

import contextlib
import functools
import json
import os
import random
import re
import shutil
import tempfile
import time
import zlib
from dataclasses import asdict, dataclass

from feat.base.script import run_script

import numpy as np
from absl import flags

from feat.base.files import UserError, make_writable_directory, require_free_bytes, write_text
from feat.base.parallel import parallel_map
from feat.corpora.find import PATTERNS, find_speakers
from feat.corpora.lists import plain_talker
from feat.corpora.mixture_tree import BYTES_PER_SAMPLE, claim_folder
from feat.corpora.triplet_mixing import (
    Draw,
    MixSettings,
    Unusable,
    draw_in_parity,
    draw_triplet,
    join_ranges,
    make_triplet,
    match_lengths,
    pcm16,
)
from feat.corpora.triplets import part_stem, triplet_paths
from feat.signals.audio import read_resampled, wav_info, write_pcm16

LAYOUTS = ("part", "evaluation")
ATTEMPTS = 50  # draws of a triplet before its number is given up
SKIPS_SHOWN = 20


@dataclass(frozen=True)
class TripletCorpus:
    """A set of triplets and how it is made.

    Attributes:
      corpus_folder: holds a folder for every talker.
      output_folder: where the set goes.
      nfiles: number of triplets.
      snr_levels: dB of the target over the interferer; every triplet has one of them.
      mixing: MixSettings.
      seed: integer.
      layout: "part", or "evaluation" for mix/, targets/ and refs/.
    """

    corpus_folder: str
    output_folder: str
    nfiles: int
    snr_levels: tuple[float, ...]
    mixing: MixSettings
    seed: int = 42
    layout: str = "part"

    def path(self, name):
        return os.path.join(self.output_folder, name)

    def source(self, name):
        """Where the utterance `name`, relative to the corpus, lies."""
        return os.path.join(self.corpus_folder, *name.split("/"))


@dataclass(frozen=True)
class _Job:
    """One triplet: its number, and in parity its (Draw, SNR in dB)."""

    number: int
    drawn: tuple | None = None


def make_triplets(corpus, patterns=PATTERNS, overwrite=False, num_workers=0):
    """Makes the triplets of a TripletCorpus, or what is still missing of them.

    Args:
      patterns: names that utterances may have.
      overwrite: replace what was made in the folder with other settings.
      num_workers: processes; 0 takes one for every core.

    Returns:
      Lines that sum up what the folder holds, and what was skipped.

    Raises:
      UserError: the corpus has too few utterances, or none that can be used; the disk is too small; the folder
        holds something else.
    """
    started = time.monotonic()
    files = find_speakers(corpus.corpus_folder, patterns)
    jobs = _jobs(corpus, files)
    settings = asdict(corpus) | {
        "corpus_folder": os.path.abspath(corpus.corpus_folder),
        "utterances": zlib.crc32(repr(files).encode()),
    }
    del settings["output_folder"]
    claim_folder(corpus.output_folder, settings, overwrite, sources=[corpus.corpus_folder])
    for folder in {os.path.dirname(path) for path in triplet_paths(corpus.output_folder, "", corpus.layout).values()}:
        make_writable_directory(folder)
    make_writable_directory(corpus.path("records"))

    known = _known(corpus)
    missing = [job for job in jobs if job.number not in known]
    _require_disk(corpus, missing, files, num_workers)
    write_text(_utterances_path(corpus), json.dumps(files))
    parallel_map(functools.partial(_make, corpus), missing, num_workers, "triplets")
    known |= {job.number: _read_json(_record_path(corpus, job.number)) for job in missing}

    rows = [row for job in jobs for row in known[job.number]["rows"]]
    skipped = [entry for job in jobs for entry in known[job.number]["skipped"]]
    if not rows:
        raise UserError(f"{corpus.corpus_folder}: no triplet could be made; the first reason: {skipped[0]['reason']}")
    write_text(corpus.path("skipped.jsonl"), _lines(skipped))
    # The last, because it says that the set is whole.
    write_text(corpus.path("manifest.jsonl"), _lines(rows))
    shutil.rmtree(corpus.path("records"))
    return [
        f"{corpus.output_folder}: {len(rows)} mixtures of {len({row['triplet'] for row in rows})} triplets,"
        f" {sum(row['samples'] for row in rows) / corpus.mixing.sample_rate / 3600:.2f} hours,"
        f" {len({row['target_speaker'] for row in rows})} talkers, {len(missing)} triplets made now;"
        f" {time.monotonic() - started:.0f} s",
        *_reasons(corpus, skipped),
    ]


def read_manifest(folder, name="manifest.jsonl"):
    """Rows of the manifest of a set, [{name: value}]. Raises UserError if the set was not made to its end."""
    path = os.path.join(folder, name)
    try:
        with open(path, encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; run feat/librispeech_mix.py to its end") from error
    except ValueError as error:
        raise UserError(f"{path}: not a manifest ({error}); run feat/librispeech_mix.py again") from error


def rebuild(row, corpus_folder, sample_rate):
    """The signals of a row of the manifest, made from its source files again before they are rounded to 16 bits.

    Returns:
      {"mixture", "target", "reference": as the wavs have them; "target_in_mixture", "noise_in_mixture": the two
      whose sum is the mixture}, float64 [samples] each.
    """

    def joined(name):
        samples = read_resampled(os.path.join(corpus_folder, *row[f"{name}_source"].split("/")), sample_rate)
        return join_ranges(samples.astype(np.float64), row[f"{name}_ranges"])

    target, noise = match_lengths(joined("target"), joined("noise"))
    parts = row["mixture_target_gain"] * target, row["mixture_noise_gain"] * noise
    return {
        "mixture": sum(parts),
        "target": row["target_gain"] * target,
        "reference": row["reference_gain"] * joined("reference"),
        "target_in_mixture": parts[0],
        "noise_in_mixture": parts[1],
    }


# Inside -------------------------------------------------------------------------------------------


def _jobs(corpus, files):
    """[_Job] of every number."""
    if len({plain_talker(speaker) for speaker in files}) < len(files):
        raise UserError(f"{corpus.corpus_folder}: talkers' folders differ in -, _ and blanks alone; rename some")
    if not corpus.mixing.parity:
        return [_Job(number) for number in range(corpus.nfiles)]
    draws = draw_in_parity(files, corpus.nfiles, corpus.seed)
    ratios = (random.Random(f"{corpus.seed} {number}").choice(corpus.snr_levels) for number in range(corpus.nfiles))
    return [_Job(number, drawn) for number, drawn in enumerate(zip(draws, ratios))]


def _draws(corpus, job, files):
    """Yields (Draw, SNR in dB), to be tried in turn."""
    if job.drawn:
        yield job.drawn
        return
    for attempt in range(ATTEMPTS):
        yield draw_triplet(files, corpus.snr_levels, corpus.seed, job.number, attempt)


def _record_path(corpus, number):
    return os.path.join(corpus.path("records"), f"{number:06d}.json")


def _utterances_path(corpus):
    return os.path.join(corpus.path("records"), "utterances.json")


@functools.lru_cache(1)
def _utterances(path, written):
    """Utterances that can be drawn, {talker: [path]}; read once in every process. `written`: when the file was."""
    return _several(_read_json(path))


def _several(files):
    """Those talkers of {talker: [path]} that have two utterances or more."""
    return {speaker: paths for speaker, paths in files.items() if len(paths) > 1}


def _known(corpus):
    """{number: record} of the triplets that are there, all of their files, and whole."""
    records = {}
    if os.path.exists(corpus.path("manifest.jsonl")):
        for name, key in (("manifest.jsonl", "rows"), ("skipped.jsonl", "skipped")):
            for row in read_manifest(corpus.output_folder, name):
                records.setdefault(row["triplet"], {"rows": [], "skipped": []})[key].append(row)
    for name in os.listdir(corpus.path("records")):
        if re.fullmatch(r"\d+\.json", name):
            records[int(name[:-5])] = _read_json(os.path.join(corpus.path("records"), name))
    folders = {os.path.dirname(path) for path in triplet_paths(corpus.output_folder, "", corpus.layout).values()}
    present = {os.path.join(folder, name) for folder in folders for name in os.listdir(folder)}

    def whole(record):
        return all(
            path in present and _is_whole(path)
            for row in record["rows"]
            for path in triplet_paths(corpus.output_folder, row["name"], corpus.layout).values()
        )

    return {number: record for number, record in records.items() if whole(record)}


def _is_whole(path):
    try:
        wav_info(path)
    except UserError:
        return False
    return True


def _read_json(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def _lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def _require_disk(corpus, jobs, files, num_workers):
    """Says how much is going to be written, at most. Raises UserError if the disk cannot hold it."""
    files = _several(files)
    draws = [next(_draws(corpus, job, files))[0] for job in jobs]
    paths = list(dict.fromkeys(path for d in draws for path in (d.target, d.noise, d.reference)))
    measured = parallel_map(
        functools.partial(_seconds, corpus), paths, num_workers if len(paths) > 2000 else 1, "lengths"
    )
    seconds = dict(zip(paths, measured, strict=True))
    linked = _can_link(corpus.output_folder)
    total = 0.0
    for draw in draws:
        both, reference = (seconds[draw.target], seconds[draw.noise]), seconds[draw.reference]
        if corpus.mixing.test:
            total += 2 * max(both) + reference
            continue
        segments = min(both) // corpus.mixing.segment_s
        total += 2 * segments * corpus.mixing.segment_s + reference * (min(1, segments) if linked else segments)
    needed = int(total * corpus.mixing.sample_rate * BYTES_PER_SAMPLE)
    require_free_bytes(corpus.output_folder, needed, "the triplets")
    if needed:
        print(f"{corpus.output_folder}: up to {needed / 1e6:,.0f} MB will be written", flush=True)


def _seconds(corpus, name):
    """Length of an utterance; 0 if it cannot be used, which is said when it is."""
    try:
        return wav_info(corpus.source(name)).seconds
    except UserError:
        return 0.0


def _can_link(folder):
    """Whether the disk has hard links."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        try:
            os.link(file.name, file.name + ".link")
        except OSError:
            return False
        os.remove(file.name + ".link")
    return True


def _make(corpus, job):
    """Writes the files of one triplet, then its record."""
    rows, skipped = [], []
    path = _utterances_path(corpus)
    files = None if job.drawn else _utterances(path, os.stat(path).st_mtime_ns)
    for attempt, (draw, snr_db) in enumerate(_draws(corpus, job, files)):
        about = {"triplet": job.number, "attempt": attempt}
        sources = {"target": draw.target, "interferer": draw.noise, "enrolment": draw.reference}
        try:
            signals = [read_resampled(corpus.source(name), corpus.mixing.sample_rate) for name in sources.values()]
            reference, mixtures = make_triplet(*signals, snr_db, corpus.mixing)
        except UserError as error:
            skipped.append(about | {"reason": str(error)})
            continue
        except Unusable as error:
            names = [sources[error.role]] if error.role else [draw.target, draw.noise]
            skipped.append(about | {"reason": f"{' and '.join(map(corpus.source, names))}: {error}"})
            continue
        for segment, mixed in mixtures.items():
            if isinstance(mixed, Unusable):
                reason = f"{corpus.source(draw.target)} and {corpus.source(draw.noise)}, segment {segment}: {mixed}"
                skipped.append(about | {"segment": segment, "reason": reason})
            else:
                rows.append(_row(corpus, job.number, attempt, draw, snr_db, segment, mixed, reference))
                _write(corpus, rows, mixed, reference)
        if rows:
            break
    write_text(_record_path(corpus, job.number), json.dumps({"rows": rows, "skipped": skipped}) + "\n")


def _row(corpus, number, attempt, draw: Draw, snr_db, segment, mixed, reference):
    """What the manifest says of one mixture."""
    return {
        "name": part_stem(plain_talker(draw.target_speaker), plain_talker(draw.noise_speaker), number, segment),
        "triplet": number,
        "segment": segment,
        "seed": corpus.seed,
        "attempt": attempt,
        "target_speaker": draw.target_speaker,
        "noise_speaker": draw.noise_speaker,
        "target_source": draw.target,
        "noise_source": draw.noise,
        "reference_source": draw.reference,
        "snr_db": snr_db,
        "samples": len(mixed.mixture),
        "target_gain": mixed.target_gain,
        "mixture_target_gain": mixed.mixture_target_gain,
        "mixture_noise_gain": mixed.mixture_noise_gain,
        "reference_gain": reference.gain,
        "target_ranges": mixed.target_ranges.tolist(),
        "noise_ranges": mixed.noise_ranges.tolist(),
        "reference_ranges": reference.ranges.tolist(),
    }


def _write(corpus, rows, mixed, reference):
    """Writes what is missing of the wavs of the last row; a reference of several rows is stored once if possible."""
    first, own = (triplet_paths(corpus.output_folder, row["name"], corpus.layout) for row in (rows[0], rows[-1]))
    signals = {"mixture": mixed.mixture, "target": mixed.target, "enrolment": reference.signal}
    for kind, signal in signals.items():
        if _is_whole(own[kind]):
            continue
        with contextlib.suppress(FileNotFoundError):
            os.remove(own[kind])
        if kind == "enrolment" and own != first:
            with contextlib.suppress(OSError):
                os.link(first[kind], own[kind])
        if not os.path.exists(own[kind]):
            write_pcm16(own[kind], pcm16(signal, corpus.mixing.parity), corpus.mixing.sample_rate)


def _reasons(corpus, skipped):
    """Lines on what was skipped, every reason once, the first ones in full."""
    reasons = list(dict.fromkeys(entry["reason"] for entry in skipped))
    lines = [f"skipped: {reason}" for reason in reasons[:SKIPS_SHOWN]]
    if len(reasons) > SKIPS_SHOWN:
        lines.append(f"skipped: {len(reasons) - SKIPS_SHOWN} more, see {corpus.path('skipped.jsonl')}")
    return lines


def define_flags():
    flags.DEFINE_string("corpus_folder", None, "folder with a folder for every talker")
    flags.DEFINE_string("output_folder", None, "folder to write to")
    flags.DEFINE_bool("test", False, "mix whole utterances rather than segments without pauses")
    flags.DEFINE_integer("nfiles", None, "triplets; default 10000, with --test 1000", lower_bound=1)
    flags.DEFINE_list("snr_levels", None, "dB of the target over the interferer; default 0,5, with --test 0")
    flags.DEFINE_float("trim_db", None, "trim what is so far below the loudest; 0: nothing; default 20, with --test 0")
    flags.DEFINE_float("vad_db", 20, "frames so far below the loudest are pauses", lower_bound=0)
    flags.DEFINE_float("audio_len", 3, "seconds of a segment", lower_bound=0.4)
    flags.DEFINE_integer("sample_rate", 16000, "Hz of the wavs; other files are resampled", lower_bound=4000)
    flags.DEFINE_integer("seed", 42, "draws the triplets")
    flags.DEFINE_bool("parity", False, "draw, level and round exactly as the original")
    flags.DEFINE_list("pattern", list(PATTERNS), "names of the utterances")
    flags.DEFINE_enum("layout", "part", LAYOUTS, "evaluation: mix/, targets/ and refs/ rather than part/")
    flags.DEFINE_bool("overwrite", False, "replace what was made in the folder with other settings")
    flags.DEFINE_integer("num_workers", 0, "processes; 0: one for every core", lower_bound=0)


def corpus_of_flags(values):
    """TripletCorpus of the flags. Raises UserError for those that make no sense."""
    for name in ("corpus_folder", "output_folder"):
        if not values[name].value:
            raise UserError(f"--{name} is missing; see the examples in --help")
    levels = values.snr_levels or (["0"] if values.test else ["0", "5"])
    try:
        levels = tuple(float(level) for level in levels)
    except ValueError as error:
        raise UserError(f"--snr_levels {','.join(levels)}: numbers of dB are needed") from error
    if not np.isfinite(levels).all():
        raise UserError("--snr_levels: finite numbers of dB are needed")
    trim_db = values.trim_db if values.trim_db is not None else (0 if values.test else 20)
    mixing = MixSettings(
        values.sample_rate, trim_db or None, values.vad_db, values.audio_len, values.test, values.parity
    )
    nfiles = values.nfiles or (1000 if values.test else 10000)
    return TripletCorpus(values.corpus_folder, values.output_folder, nfiles, levels, mixing, values.seed, values.layout)


def main(_):
    values = flags.FLAGS
    lines = make_triplets(corpus_of_flags(values), values.pattern, values.overwrite, values.num_workers)
    print("\n".join(lines))


if __name__ == "__main__":
    define_flags()
    run_script(main)
