"""Looks at a corpus before hours are spent on it, and says what is wrong, file by file.

    python feat/doctor.py --data_folder DATA --wav_list_folder LISTS      mixtures, their sources and lists
    python feat/doctor.py --corpus_root TALKERS [--sample_rate 16000]     recordings of single talkers, any format

Exit code 1 if anything is wrong. Nothing is changed.
"""

import collections
import csv
import functools
import hashlib
import io
import os
from typing import NamedTuple

from feat.base.script import run_script

import numpy as np
import soundfile
from absl import flags

from feat.base.files import UserError, write_text
from feat.base.parallel import parallel_map
from feat.corpora.features import define_feature_flags, settings_from_flags
from feat.corpora.lists import SETS, parts_of_name, read_names, source_names, talker_of
from feat.signals.audio import wav_info

FLAGS = flags.FLAGS

CLIPPED_RUN = 3  # neighbouring samples at the largest magnitude of a file, if that is near full scale
NEAR_FULL_SCALE = 0.98
SILENT_DBFS = -70.0  # root mean square
DC_SHARE = 0.1  # of the root mean square that may be offset
DC_LEAST = 1e-3  # full scale; offsets below are nothing
SUM_DB = 35.0  # the mixture must stand above what it differs from its sources' sum
EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3", ".sph", ".wv1", ".wv2", ".aiff", ".aif")


class Fault(NamedTuple):
    """Something wrong with a file."""

    path: str
    kind: str
    what: str


def signal_faults(path, samples):
    """Faults of one channel, [samples] floats with full scale 1."""
    broken = np.count_nonzero(~np.isfinite(samples))
    if broken:
        return [Fault(path, "NaN", f"{broken} of {len(samples)} samples are NaN or infinite; make it again")]
    faults = []
    power = np.mean(np.square(samples))
    if 10 * np.log10(power + 1e-20) < SILENT_DBFS:
        return [Fault(path, "silent", f"{10 * np.log10(power + 1e-20):.0f} dBFS; remove it from the list")]
    offset = np.mean(samples)
    if abs(offset) > max(DC_LEAST, DC_SHARE * np.sqrt(power)):
        faults.append(Fault(path, "DC offset", f"{offset:+.4f} of full scale; subtract the mean"))
    peak = np.max(np.abs(samples))
    if peak > NEAR_FULL_SCALE:
        # One of the two ends of the range may hold one step more than the other.
        at_peak = np.abs(samples) >= peak - 1.5 / 32768
        edges = np.flatnonzero(np.diff(np.concatenate([[0], at_peak.astype(np.int8), [0]])))
        runs = edges[1::2] - edges[::2]
        clipped = int(runs[runs >= CLIPPED_RUN].sum())
        if clipped:
            faults.append(Fault(path, "clipped", f"{clipped} samples in {np.sum(runs >= CLIPPED_RUN)} places"))
    return faults


def file_faults(path, sample_rate=None):
    """Faults of one file, and its samples [samples] if they can be looked at, else None.

    Args:
        sample_rate: Hz that it must have; None: any.
    """
    if "wv2" in os.path.basename(path).lower():
        return [Fault(path, "second microphone", "named so; take the .wv1 recording, the close-talk channel")], None
    try:
        info = wav_info(path)
    except UserError as error:
        return [Fault(path, "unreadable", str(error).removeprefix(f"{path}: "))], None
    faults = []
    if sample_rate and info.sample_rate != sample_rate:
        faults.append(Fault(path, "wrong rate", f"{info.sample_rate} Hz, {sample_rate} Hz are needed; resample it"))
    try:
        samples = soundfile.read(path, always_2d=True)[0]
    except soundfile.LibsndfileError as error:
        return [*faults, Fault(path, "unreadable", f"{error.error_string}; make it again")], None
    if len(samples) != info.frames:
        faults.append(Fault(path, "unreadable", f"{len(samples)} of {info.frames} samples are there; make it again"))
    if info.channels > 1:
        faults.append(Fault(path, "stereo", f"{info.channels} channels; extract one"))
    return faults + signal_faults(path, samples[:, 0]), samples[:, 0]


def mixture_faults(settings, item):
    """(faults, hash of the mixture's samples or None) of (set name, mixture name)."""
    set_name, name = item
    paths = settings.wav_paths(set_name, name)
    looked_at = [file_faults(path, settings.sample_rate) for path in paths]
    faults = [fault for some, _ in looked_at for fault in some]
    signals = [samples for _, samples in looked_at]
    if any(signal is None for signal in signals):
        return faults, None
    *sources, mixture = signals
    lengths = [len(signal) for signal in signals]
    if len(set(lengths)) > 1:
        said = ", ".join(f"{source} {n}" for source, n in zip(source_names(settings.talkers), lengths))
        return [*faults, Fault(paths[-1], "unequal lengths", f"samples: {said}; make them again")], _hash(mixture)
    if not all(np.isfinite(signal).all() for signal in signals):
        return faults, None
    rest = np.mean(np.square(mixture - np.sum(sources, axis=0)))
    power = np.mean(np.square(mixture))
    steps = (settings.talkers + 1) / 12 / 32768**2  # rounding to 16 bits
    if rest > 4 * steps and 10 * np.log10(power / rest + 1e-20) < SUM_DB:
        what = f"the rest is only {10 * np.log10(power / rest + 1e-20):.1f} dB below the mixture; make it again"
        faults.append(Fault(paths[-1], "not the sum of its sources", what))
    for i, path in enumerate(paths[:-1]):
        for other in range(i):
            if np.array_equal(sources[i], sources[other]) and sources[i].any():
                faults.append(Fault(path, "duplicate", f"equals {paths[other]}; mix different talkers"))
    return faults, _hash(mixture)


def recording_faults(sample_rate, path):
    """(faults, hash of the samples or None) of a recording of one talker."""
    faults, samples = file_faults(path, sample_rate)
    return faults, None if samples is None else _hash(samples)


def _hash(samples):
    return hashlib.sha256(np.ascontiguousarray(samples, np.float32).data).hexdigest()


def duplicate_faults(paths, hashes):
    """Faults of files whose samples are equal."""
    first, faults = {}, []
    for path, number in zip(paths, hashes):
        if number is not None and first.setdefault(number, path) != path:
            faults.append(Fault(path, "duplicate", f"the same samples as {first[number]}; remove one of them"))
    return faults


def split_faults(lists, lists_folder, talkers):
    """(faults, notes) of talkers and utterances that two sets share.

    tr and cv of WSJ0-2mix share their talkers by design, so that is only noted.
    """
    faults, notes = [], []
    utterances = {}
    for set_name, names in lists.items():
        try:
            utterances[set_name] = {part for name in names for part in parts_of_name(name, talkers)}
        except UserError:
            notes.append(f"{lists_folder}, {set_name}: talkers are not in the names, so splits are not compared")
    for one, other in (("tr", "cv"), ("tr", "tt"), ("cv", "tt")):
        if one not in utterances or other not in utterances:
            continue
        shared = utterances[one] & utterances[other]
        if shared:
            what = f"{len(shared)} utterances are in {one} too, such as {sorted(shared)[0]}; draw the lists again"
            faults.append(Fault(f"{lists_folder}, {other}", "utterances in two splits", what))
        talkers_of = [{talker_of(part) for part in utterances[name]} for name in (one, other)]
        shared = sorted(talkers_of[0] & talkers_of[1])
        if shared and other == "cv":
            notes.append(
                f"{lists_folder}: cv has {len(shared)} of its {len(talkers_of[1])} talkers in tr, as WSJ0-2mix"
            )
        elif shared:
            what = f"{len(shared)} talkers are in {one} too, such as {shared[0]}; scores would flatter"
            faults.append(Fault(f"{lists_folder}, {other}", "talkers in two splits", what))
    return faults, notes


def examine_mixtures(settings, lists, lists_folder, num_workers=0):
    """(faults, notes) of the mixtures of lists {set name: [mixture name]}."""
    items = [(set_name, name) for set_name, names in lists.items() for name in names]
    found = parallel_map(functools.partial(mixture_faults, settings), items, num_workers, "look at mixtures")
    faults = [fault for some, _ in found for fault in some]
    paths = [settings.wav_paths(*item)[-1] for item in items]
    faults += duplicate_faults(paths, [number for _, number in found])
    more, notes = split_faults(lists, lists_folder, settings.talkers)
    return faults + more, notes


def examine_recordings(root, sample_rate=None, num_workers=0):
    """(faults, paths) of all audio files below a folder. Without a rate, the most common one is expected."""
    paths = sorted(
        os.path.join(folder, name)
        for folder, _, names in os.walk(root)
        for name in names
        if name.lower().endswith(EXTENSIONS)
    )
    if not paths:
        raise UserError(f"{root}: no audio file below it; give the folder of the recordings")
    if not sample_rate:
        rates = collections.Counter(parallel_map(_rate, paths, num_workers, "read headers"))
        del rates[None]
        sample_rate = rates.most_common(1)[0][0] if rates else None
    look = functools.partial(recording_faults, sample_rate)
    found = parallel_map(look, paths, num_workers, "look at recordings")
    faults = [fault for some, _ in found for fault in some]
    return faults + duplicate_faults(paths, [number for _, number in found]), paths


def _rate(path):
    try:
        return wav_info(path).sample_rate
    except UserError:
        return None


def main(_):
    if FLAGS.corpus_root:
        rate = FLAGS.sample_rate if FLAGS["sample_rate"].present else None
        faults, paths = examine_recordings(FLAGS.corpus_root, rate, FLAGS.num_workers)
        notes, examined = [], f"{FLAGS.corpus_root}: {len(paths)} recordings"
    else:
        settings = settings_from_flags()
        lists = {name: read_names(FLAGS.wav_list_folder, name, FLAGS.talkers) for name in FLAGS.sets}
        faults, notes = examine_mixtures(settings, lists, FLAGS.wav_list_folder, FLAGS.num_workers)
        examined = f"{settings.data_folder}: {sum(map(len, lists.values()))} mixtures"
    for fault in sorted(faults):
        print(f"{fault.path}: {fault.kind}: {fault.what}")
    for note in notes:
        print(f"note: {note}")
    if FLAGS.report:
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow(Fault._fields)
        writer.writerows(sorted(faults))
        write_text(FLAGS.report, table.getvalue())
    kinds = collections.Counter(fault.kind for fault in faults)
    print(f"{examined} looked at, {len(faults)} faults" + "".join(f", {n} {kind}" for kind, n in kinds.most_common()))
    if faults:
        raise UserError(f"{len(faults)} faults found in {len({fault.path for fault in faults})} files; see above")


if __name__ == "__main__":
    define_feature_flags()
    flags.DEFINE_string("corpus_root", "", "folder of recordings of single talkers, instead of mixtures")
    flags.DEFINE_list("sets", list(SETS), "sets to look at")
    flags.DEFINE_string("report", "", "CSV file for the faults")
    flags.DEFINE_integer("num_workers", 0, "processes; 0: one for every core", lower_bound=0)
    run_script(main)
