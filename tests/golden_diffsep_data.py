"""Procedures of the golden cases on the data, scores and small functions of DiffSep, see test_golden.py."""

import functools
import re

import numpy as np
import soundfile
import tensorflow as tf
from golden_case import summary

from feat.batches import diffsep
from feat.signals import audio
from models import losses
from models.diffsep import losses as diffusion_losses
from models.diffsep import sde
from nn import diffsep_evaluate
from nn.scoring import composite, metrics
from nn.systems.diffsep import recordings
from nn.systems.diffsep import results as diffsep_results

PROCEDURES = {}


def procedure(kind):
    def register(function):
        PROCEDURES["diffsep", kind] = function
        return function

    return register


# Data ---------------------------------------------------------------------------------------------


@procedure("datasets")
def datasets(case, folder):
    """Has the files written, and the batches read, with the places of the crops that were drawn."""
    wsj_sets(case, folder)
    vctk_sets(case, folder)


def numbered(case, prefix):
    """[array] of in/<prefix>0, 1, ..."""
    names = sorted((name for name in case.named("in") if name.startswith(prefix)), key=lambda x: int(x[len(prefix) :]))
    return [case[f"in/{name}"] for name in names]


def cut_with_draws(mixtures, draws, segment, parity=True):
    """The Cut of all mixtures with recorded draws [low, high, value], one for every file that is longer."""
    lines = np.arange(len(mixtures))[None]
    cut = diffsep.crop(mixtures, lines, segment, np.random.default_rng(0), parity)
    whole = mixtures.samples
    longer = np.flatnonzero(whole > segment)
    choices = diffsep.crop_choices(whole, segment, mixtures.enhancement, parity)
    assert len(draws) == len(longer)
    for line, (low, high, value) in zip(longer, draws):
        assert low == 0 and choices[line] == high + mixtures.enhancement
        cut.starts[0, line] = value
    return cut


def batch_of(mixtures, cut):
    (batch,) = diffsep.cut_batches(mixtures, cut.lines, cut)
    return {name: value.numpy() for name, value in batch.items()}


def wsj_sets(case, folder):
    config = case.config
    sources, mixtures = numbered(case, "wsj_src"), numbered(case, "wsj_mix")
    rate = config.get("fs", 8000)
    # The notes say which file holds which signals, as in "files named b_utt, c_utt, a_utt hold".
    written = re.search(r"files named (.+?) hold", case.meta["notes"])[1].split(", ")
    for name, signals, mixture in zip(written, sources, mixtures, strict=True):
        audio.write_pcm16(folder / "wsj" / "mix" / f"{name}.wav", mixture, rate)
        for c, source in enumerate(signals, start=1):
            audio.write_pcm16(folder / "wsj" / f"s{c}" / f"{name}.wav", source, rate)
    found = diffsep.mixture_set(folder / "wsj", rate, len(sources[0]))
    assert [name + ".wav" for name in found.names] == config["wsj_file_order"]
    batch = batch_of(found, cut_with_draws(found, config["wsj_crop_draws"], config["wsj_max_len"]))
    case.check("wsj_batch_mix", batch["mixture"][:, None], case["out/wsj_batch_mix"], least=1e-7)
    case.check("wsj_batch_target", batch["sources"], case["out/wsj_batch_target"], least=1e-7)
    some = found.first(len(config["wsj_val_files"]))
    assert [name + ".wav" for name in some.names] == config["wsj_val_files"]
    (batch,) = diffsep.evaluation_batches(some, len(some))
    case.check("wsj_val_mix", batch["mixture"].numpy()[:, None], case["out/wsj_val_mix"], least=1e-7)


def vctk_sets(case, folder):
    rate = case.config.get("vctk_fs", 16000)
    for kind in ("noisy", "clean"):
        for i, signal in enumerate(numbered(case, f"vctk_{kind}")):
            for split in ("train", "test"):
                audio.write_pcm16(folder / "vctk" / split / kind / f"{i:03d}.wav", signal, rate)
    found = diffsep.noisy_set(folder / "vctk", "train", rate)
    batch = batch_of(found, cut_with_draws(found, case.config["vctk_crop_draws"], case.config["vctk_audio_len"]))
    case.check("vctk_batch_noisy", batch["mixture"][:, None], case["out/vctk_batch_noisy"], least=1e-7)
    case.check("vctk_batch_target", batch["sources"], case["out/vctk_batch_target"], least=1e-7)
    test = diffsep.noisy_set(folder / "vctk", "test", rate)
    for key, theirs in case.named("out").items():
        if key.startswith("vctk_test_target"):
            (batch,) = diffsep.evaluation_batches(test.some([int(key.removeprefix("vctk_test_target"))]))
            case.check(key, batch["sources"][0], theirs, least=1e-7)


# Scores -------------------------------------------------------------------------------------------


@procedure("metrics")
def scores(case, folder):
    rate = case.config["fs"]
    references, estimates = (case[f"in/{kind}_int16"].astype(np.float64) / 32768 for kind in ("ref", "est"))
    found = {}
    for key in case.named("out"):
        if match := re.fullmatch(r"(si_sdr|si_sir|si_sar|perm)_zm([01])_clamp(\w+)", key):
            kind, zero_mean, clamp = match.groups()
            values, order = metrics.scale_invariant_scores(
                estimates, references, bool(int(zero_mean)), None if clamp == "None" else float(clamp)
            )
            found[key] = order[None] if kind == "perm" else values[kind][None]
    for zero_mean in (False, True):
        values, _ = metrics.scale_invariant_scores(estimates, references, zero_mean, None, "si_sdr")
        found[f"si_sdr_pit_zm{int(zero_mean)}"] = values["si_sdr"][None]
    found |= validation_losses(case, references, estimates)
    _, order = metrics.scale_invariant_scores(estimates, references)
    found["perm_by_sir"] = order[None]
    ordered = estimates[order]
    for extended in (False, True):
        if f"stoi_ext{int(extended)}" in case.named("out"):
            found[f"stoi_ext{int(extended)}"] = metrics.estoi(ordered, references, rate, extended)
    for mode in ("nb", "wb"):
        if f"pesq_{mode}" in case.named("out"):
            found[f"pesq_{mode}"] = metrics.pesq(ordered, references, rate, mode)
    if "out/csig_cbak_covl" in case:
        found |= composite_measures(references, ordered, rate)
    for key, theirs in case.named("out").items():
        # SIR is a ratio of shares that the reference has in float32; the last bits of a share near 1 are much of it.
        case.check(key, found[key], theirs, least=5e-4 if "sir" in key and "perm" not in key else 1e-4)


def validation_losses(case, references, estimates):
    """What training validates with, and its gradient."""
    estimates, references = (tf.constant(x[None], tf.float32) for x in (estimates, references))
    ratio = functools.partial(losses.clamped_si_sdr, clamp_db=30.0)
    every = losses.clamped_si_sdr(estimates[:, None], references[:, :, None], 100.0, zero_mean=False)
    order = metrics.scale_invariant_scores(estimates[0], references[0], True, 30.0, "si_sdr")[1]
    with tf.GradientTape() as tape:
        tape.watch(estimates)
        mean = tf.reduce_mean(losses.utterance_pit_si_sdr(estimates, references))
        loss = -mean
    ours, theirs = summary(tape.gradient(loss, estimates)), case["probe/grad_SISDRLoss_est"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())
    ordered = tf.gather(estimates, order, axis=1)
    return {
        "pairwise_neg_si_sdr": -every,
        "SISDRLoss_mean": mean,
        "SISDRLoss_sum": mean * len(order),
        "SISDRLoss_none": ratio(ordered, references),
        "si_sdr_perfect_clamp30": ratio(references, references),
        "si_sdr_silent_clamp30": ratio(0 * references, references),
    }


def composite_measures(references, estimates, rate):
    found, rows = {}, []
    for i, (clean, processed) in enumerate(zip(references, estimates)):
        parts = composite.parts(clean, processed, rate)
        rows.append(list(composite.composite(parts).values()))
        found |= {f"{name}_{i}": parts[name] for name in ("wss", "llr", "snr", "segsnr")}
        found[f"pesq_wb_after_ssnr_{i}"] = parts["pesq"]
        found[f"pesq_wb_plain_{i}"] = metrics.pesq(processed[None], clean[None], rate, "wb")[0]
    return found | {"csig_cbak_covl": rows}


# Small functions ----------------------------------------------------------------------------------


@procedure("small_functions")
def small_functions(case, folder):
    mixture, sources = case["in/mix"][:, 0], case["in/target"]
    scaled, theirs, measure = sde.normalise(mixture, sources)
    estimates, mixed = case["in/sep"], case["in/sep_mix"]
    found = {
        "norm_mix": np.asarray(scaled)[:, None],
        "norm_target": theirs,
        "mean": measure[0],
        "std": measure[1],
        "denorm": sde.denormalise(theirs, measure),
        "power_order": in_order("power", case["in/x3"]),
        "shuffled": in_order("random", case["in/x3"], np.argsort(case["in/shuffle_keys"], axis=1).astype(np.int32)),
        "scale_output": recordings.project(estimates, mixed),
        "scale_output_silent": recordings.project(0 * estimates, mixed),
    }
    index = next(int(key.removeprefix("saved/")[:3]) for key in case.named("out") if key.startswith("saved/"))
    found |= saved_audio(index, estimates[0], mixed[0, 0], folder)
    for key, theirs in case.named("out").items():
        # The third mixture is constant, so that its scaled sources are their rounding over 1e-5.
        case.check(key, found[key], theirs, least=1e-5)


def in_order(rule, sources, order=None):
    process = sde.MixSDE(sources.shape[1])
    return diffusion_losses.ScoreMatching(process, source_order=rule)._in_order(tf.constant(sources), order)


def saved_audio(index, estimates, mixture, folder):
    """The wavs that an evaluation writes of these, under the names of the reference."""
    signals = dict(mixture=mixture, estimates=estimates, references=0.5 * estimates, states=None)
    options = diffsep_evaluate.Options("", diffsep.Corpora(), (), str(folder))
    diffsep_evaluate._save(options, "test", index, signals, 8000, {})
    found = {}
    for path in (folder / "wav" / "test").iterdir():
        index, kind, _ = path.name.split(".")
        found[f"saved/{int(index):03d}_{kind}.wav"] = soundfile.read(path, dtype="float32")[0][None]
    return found


@procedure("summaries")
def summaries(case, folder):
    config = case.config

    def check(ours, theirs):
        # The number of a recording has no mean.
        wanted = {name: float(value) for name, value in theirs.items() if name != "batch_idx"}
        assert set(ours) == set(wanted)
        for name, value in wanted.items():
            case.check(name, ours[name], value, least=1e-9)

    results = config["results"]
    check(diffsep_results.summarise(results), config["summary_dict"])
    check(diffsep_results.summarise(list(results.values())), config["summary_list"])
    infinite = config["results_with_inf"]
    summary = diffsep_results.summarise(infinite, ignore_infinite=False)
    assert summary["si_sdr"] == float(config["summary_with_inf_default"]["si_sdr"]) == np.inf
    # The reference's switch is inverted.
    check(diffsep_results.summarise(infinite), config["summary_with_inf_ignore_inf_false"])
    dnsmos = diffsep_results.read_dnsmos([[str(cell) for cell in row] for row in config["dnsmos_csv"]])
    assert dnsmos == config["dnsmos_parsed"]
    merged = diffsep_results.merge(results, dnsmos)
    assert merged == config["merged"]
    check(diffsep_results.summarise(merged), config["merged_summary"])
