"""Procedures of the golden cases on the data of SpEx+, see test_golden.py."""

import random
import re

import numpy as np
import soundfile
from golden_case import summary

from feat.batches import spex_plus
from feat.corpora import triplet_mixing
from feat.corpora.triplet_mixing import MixSettings
from feat.corpora.triplets import Triplet, read_triplets, triplet_paths
from feat.signals import audio

PROCEDURES = {}


def procedure(kind):
    def register(function):
        PROCEDURES["spex_plus", kind] = function
        return function

    return register


def check_present(case, found):
    """Compares {key: value} with those of its keys that the case holds; every key of the case must be there."""
    wanted = {key for key in case.arrays if not key.startswith("in/")}
    assert wanted <= found.keys(), f"nothing computes {sorted(wanted - found.keys())}"
    for key in sorted(wanted):
        ours, theirs = found[key], case[key]
        if theirs.dtype.kind in "US":
            assert list(ours) == list(theirs), key
        elif key.endswith(".wav"):
            assert ours.shape == theirs.shape and np.abs(ours.astype(int) - theirs).max(initial=0) <= 1, key
        elif theirs.dtype.kind in "iu":
            np.testing.assert_array_equal(ours, theirs, err_msg=key)
        else:
            case.check(key, ours, theirs, least=1e-9)


@procedure("mixing")
def mixing(case, folder):
    config = case.config
    rate = config["sample_rate"]

    def settings(test):
        trim_db = config["test_trim_db" if test else "trim_db"]
        return MixSettings(rate, trim_db, config["vad_db"], config["audioLen"], test, parity=True)

    raw = [case[f"in/{name}_int16"] / 32768 for name in ("target", "noise", "reference")]
    names = ("target", "noise", "reference")
    levels = (triplet_mixing.SOURCE_LUFS, triplet_mixing.SOURCE_LUFS, triplet_mixing.LUFS)
    normalised = [x * triplet_mixing.loudness_gain(x, rate, lufs) for x, lufs in zip(raw, levels)]
    found = {f"probe/normalised_{name}": summary(x) for name, x in zip(names, normalised)}
    found["out/loudness"] = np.array([triplet_mixing.loudness(x, rate) for x in raw])
    trim_db = config["trim_db"]
    trimmed = raw
    if trim_db is not None:
        trims = [triplet_mixing.trim_range(x, trim_db) for x in normalised]
        found["out/trim_index"] = np.array(trims)
        trimmed = [x[begin:end] for x, (begin, end) in zip(normalised, trims)]
    merged = []
    for name, x in zip(names[:2], trimmed):
        ranges = triplet_mixing.active_ranges(x, config["vad_db"])
        merged.append(triplet_mixing.join_ranges(x, ranges))
        found[f"out/vad_intervals_{name}"] = ranges
        found[f"out/vad_length_{name}"] = len(merged[-1])
        found[f"probe/vad_merged_{name}"] = summary(merged[-1])
    samples = settings(False).segment_samples
    found["out/number_of_segments"] = triplet_mixing.number_of_segments(*merged, samples)
    for mode in ("max", "min"):
        found[f"out/fix_length_{mode}"] = [len(x) for x in triplet_mixing.match_lengths(*raw[:2], mode)]

    for key in [key for key in case.arrays if re.fullmatch(r"out/(train_snr.*|test)/files", key)]:
        group = key.rsplit("/", 1)[0]
        test = group == "out/test"
        snr_db = 0.0 if test else float(group.removeprefix("out/train_snr"))
        stem = re.match(r"[^_]+_[^_]+_\d+", case[key][0])[0] if len(case[key]) else ""
        try:
            reference, mixtures = triplet_mixing.make_triplet(*raw, snr_db, settings(test))
        except triplet_mixing.Unusable:
            mixtures = {}
        loudness, files = [], {}
        for segment, mixed in mixtures.items():
            name = stem if segment is None else f"{stem}_{segment}"
            signals = {"mixed": mixed.mixture, "ref": reference.signal, "target": mixed.target}
            files |= {f"{name}-{kind}.wav": triplet_mixing.pcm16(x, parity=True) for kind, x in signals.items()}
            if not test:
                begin, end = segment * samples, (segment + 1) * samples
                s1, s2 = (x[begin:end] for x in merged)
                mixture, _ = triplet_mixing.mix_at_snr(s1, s2, snr_db)
                found[f"probe/snr_mix_{snr_db:g}_{segment}"] = summary(mixture)
                loudness.append([triplet_mixing.loudness(x, rate) for x in (s1, mixture)])
        found[key] = sorted(files)
        found |= {f"{group}/{name}": x for name, x in files.items()}
        if not test:
            found[f"out/segment_loudness_snr{snr_db:g}"] = np.array(loudness)
    check_present(case, found)


@procedure("triplets")
def triplets(case, folder):
    files = {str(speaker): list(case[f"in/files_{speaker}"]) for speaker in case["in/speakers"]}
    draws = triplet_mixing.draw_in_parity(files, case.config["nfiles"], case.config["randomState"])
    rows = [[d.target_speaker, d.noise_speaker, d.target, d.reference, d.noise] for d in draws]
    np.testing.assert_array_equal(rows, case["out/rows"])


@procedure("resample")
def resample(case, folder):
    for from_hz, to_hz in case.config["pairs"]:
        name = f"{from_hz}_{to_hz}"
        ours = np.stack([audio.resample_sinc(x, from_hz, to_hz) for x in case[f"in/{name}"]])
        assert ours.dtype == np.float32
        case.check(name, ours, case[f"out/{name}"], least=5e-5)


@procedure("data_rules")
def data_rules(case, folder):
    found = {}
    lengths = {name: case[f"in/{name}_len"] for name in ("audio", "target", "ref") if f"in/{name}_len" in case}
    if lengths:
        batches = collated(lengths, folder)
        names = {"audio": "mixture", "target": "target", "ref": "enrolment"}
        found = {
            f"out/{rule}/{theirs}": batch[ours][:, None]
            for rule, batch in batches.items()
            for theirs, ours in names.items()
        }
    if "in/index/stems" in case:
        stems = [str(stem) for stem in case["in/index/stems"]]
        for stem in stems:
            for path in triplet_paths(folder / "index", stem).values():
                audio.write_pcm16(path, np.ones(10), 16000)
        records = read_triplets(folder / "index")
        found["out/index/stems_in_order"] = np.array([record.name for record in records])
        found["out/index/labels"] = np.array([record.label for record in records])
    if "in/chunks/lengths" in case:
        rng = random.Random(0)
        for samples in case["in/chunks/lengths"]:
            for mode, generator in (("dev", None), ("train", rng)):
                rows = spex_plus.chunks(int(samples), 32000, 16000, generator)
                found[f"out/chunks/{mode}_{samples}"] = np.array(rows, np.int32).reshape(-1, 2)
    check_present(case, found)


def collated(lengths, folder):
    """Batches of all items by both rules: item b is the ramp (b + 1) * 1000 + k."""
    records = []
    for item in range(len(lengths["audio"])):
        paths = {name: str(folder / f"{name}{item}.wav") for name in lengths}
        for name, path in paths.items():
            ramp = (item + 1) * 1000 + np.arange(lengths[name][item], dtype=np.float32)
            soundfile.write(path, ramp, 16000, subtype="FLOAT")
        records.append(Triplet(str(item), paths["audio"], paths["target"], (paths["ref"],), "a", 0))
    items = spex_plus.triplet_set(records, 16000)
    batches = {
        "collate_train": spex_plus.shortest_batches(items, len(records), seed=0, epoch=0),
        "collate_test": spex_plus.evaluation_batches(items, len(records)),
    }
    ordered = {}
    for rule, dataset in batches.items():
        (batch,) = dataset
        order = np.argsort(batch["index"])
        ordered[rule] = {name: value.numpy()[order] for name, value in batch.items()}
    return ordered
