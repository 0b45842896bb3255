"""Every golden case under $GOLDEN_DIR (default tests/golden) against the functions that users run.

A case is dispatched on its system and kind; everything else comes from its `meta`.
"""

import os
import pathlib

import golden_binaural
import golden_binaural_data
import golden_diffsep
import golden_diffsep_data
import golden_diffsep_process
import golden_faces
import golden_looking_to_listen
import golden_spex_plus
import golden_spex_plus_data
import keras
import numpy as np
import pytest
import speech
import tensorflow as tf
from golden_case import (
    GRADIENT_TOLERANCE,
    UPDATE_TOLERANCE,
    Case,
    norm_and_head,
    summary,
    write_saver_checkpoint,
)
from keras import ops

from feat.batches import common
from feat.batches import deep_casa as dataset
from feat.corpora import cache, lists
from feat.corpora.features import FeatureSettings, compute_features
from feat.signals import audio, mixing, stft
from models import losses
from models.deep_casa import grouping
from models.deep_casa.dense_unet import (
    DenseUNet,
    frequency_padding,
    leading_frames,
    margin,
    output_size,
    skip_crops,
    uncompress,
)
from models.layers import conv, norm, spectral
from nn.checkpoints import deep_casa, readers
from nn.checkpoints import ours as checkpoint
from nn.systems.deep_casa import clustering
from nn.systems.deep_casa.seq import Decoder, SequentialGroupingObjective, to_signals
from nn.systems.deep_casa.simul import SimultaneousGrouping
from nn.training import loop, rules
from nn.training.optimizers import make_optimizer
from nn.training.step import TrainStep
from nn.training.task import Epochs, LoopState

GOLDEN_DIR = pathlib.Path(os.environ.get("GOLDEN_DIR", pathlib.Path(__file__).parent / "golden"))
PROCEDURES = {}
PROCEDURES.update(golden_binaural_data.PROCEDURES)
PROCEDURES.update(golden_diffsep_data.PROCEDURES)
PROCEDURES.update(golden_spex_plus_data.PROCEDURES)
PROCEDURES.update(golden_spex_plus.PROCEDURES)
PROCEDURES.update(golden_binaural.PROCEDURES)
PROCEDURES.update(golden_faces.PROCEDURES)
PROCEDURES.update(golden_diffsep_process.PROCEDURES)
PROCEDURES.update(golden_diffsep.PROCEDURES)
PROCEDURES.update(golden_looking_to_listen.PROCEDURES)


def procedure(system, kind):
    def register(function):
        PROCEDURES[system, kind] = function
        return function

    return register


@pytest.mark.parametrize("path", sorted(GOLDEN_DIR.rglob("*.npz")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_golden(path, tmp_path):
    case = Case(path)
    key = case.meta["system"], case.meta["kind"]
    assert key in PROCEDURES, f"no procedure for {key}"
    PROCEDURES[key](case, tmp_path)


# Deep CASA ----------------------------------------------------------------------------------------


def restore(model, weights, folder):
    """Sends a reference checkpoint through the reader of --resume_model."""
    prefix = write_saver_checkpoint(f"{folder}/reference/model.ckpt_step_1", weights)
    readers.load_for_inference(prefix, model.name, model)
    return model


def batch_of_features(case, causal, scales=4):
    """The batch of one utterance, with the zero frames in front that the reference stores outputs with."""
    features = case["in/features"]
    spectra = features.reshape(features.shape[0] // 2, 2, *features.shape[1:]).transpose(0, 2, 3, 1)
    frames = spectra.shape[1]
    leading = leading_frames(frames, scales, causal)
    batch = {"mixture": spectra[-1:], "sources": spectra[None, :-1], "frames": np.array([frames], np.int32)}
    if "in/wave" in case:
        batch["waveforms"] = case["in/wave"][None, : spectra.shape[0] - 1]
    if "in/simul_est" in case:
        estimates = case["in/simul_est"]
        estimates = estimates.reshape(*estimates.shape[:2], -1, 2)
        batch["estimates"] = estimates[None, :, leading:, : spectra.shape[2]]
    return {key: tf.constant(value) for key, value in batch.items()}, leading


def batch_of_loader(case, bins=129, scales=4, causal=False):
    """The batch that the reference's loader stacked along time, its padding included."""
    count = len(np.reshape(case["in/seq_len"], (-1)))
    side = 0 if causal else margin(scales)
    (low, _), (extra, _) = frequency_padding(bins, scales)

    def spectra(real, imaginary, first):
        both = np.stack([case[real], case[imaginary]], axis=-1)
        return both.reshape(count, -1, *both.shape[1:])[:, :, first : first + bins]

    mixture = spectra("in/xr", "in/xi", low)
    mixture = mixture[:, side : mixture.shape[1] - side]
    batch = {
        "mixture": mixture,
        "sources": np.stack([spectra(f"in/y{i}r", f"in/y{i}i", extra) for i in (1, 2)], axis=1),
        "frames": np.reshape(case["in/seq_len"], (-1)).astype(np.int32),
    }
    if "in/sig" in case:
        batch["waveforms"] = case["in/sig"].reshape(count, -1, 2).transpose(0, 2, 1)
    if "in/est1" in case:
        estimates = [
            case[f"in/est{i}"].reshape(count, mixture.shape[1], -1, 2)[:, :, extra : extra + bins] for i in (1, 2)
        ]
        batch["estimates"] = np.stack(estimates, axis=1)
    return {key: tf.constant(value) for key, value in batch.items()}, 0


def make_batch(case):
    if "in/features" in case:
        return batch_of_features(case, case.config["causal"], case.config["n_layers"])
    return batch_of_loader(case, case.config["feat_dim"], case.config["n_layers"], case.config["causal"])


def stored_layout(spectra, leading, scales=4):
    """[B, T, F, 2] -> the reference's [B * padded frames, 2 * padded bins]."""
    _, bins = frequency_padding(spectra.shape[2], scales)
    padded = np.pad(np.asarray(spectra), [(0, 0), (leading, 0), bins, (0, 0)])
    return padded.reshape(padded.shape[0] * padded.shape[1], -1)


def check_gradients(case, model, gradients):
    """Compares `grad/<reference name>`; a weight of ours may hold several of theirs."""
    names = deep_casa.reference_names(model)
    for variable, gradient in zip(model.trainable_variables, gradients):
        theirs = names[variable.path.split("/", 1)[1]]
        parts = [theirs] if isinstance(theirs, str) else theirs
        for part, value in zip(parts, np.split(np.asarray(gradient), len(parts), axis=-1)):
            least = max(GRADIENT_TOLERANCE, case.tolerance("grad_norms_max"))
            case.check("grad/" + part, norm_and_head(value), case["grad/" + part], least)


@procedure("deep_casa", "simultaneous_grouping")
def simultaneous_grouping(case, folder):
    config = case.config
    model = DenseUNet(
        channels=config["n_channels"],
        scales=config["n_layers"],
        bins=config["feat_dim"],
        causal=config["causal"],
        dropout=1 - config["keep_prob"],
    )
    restore(model, case.weights(), folder)
    objective = SimultaneousGrouping(model, config["fft_size"], config["hop_size"], parity=True)
    batch, leading = make_batch(case)
    training = "is_training true" in case.meta.get("grad_of", "")
    with tf.GradientTape() as tape:
        loss, metrics = objective(batch, training=training)
        loss = tf.reduce_mean(loss)
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    moved = {v.path: v.numpy() for v in model.non_trainable_variables}
    restore(model, case.weights(), folder)
    try:
        estimates, costs, signals = objective.separate(batch, training=training)
        for i in range(2):
            case.check(f"est{i + 1}", stored_layout(estimates[:, i], leading), case[f"out/est{i + 1}"])
            signal = np.pad(signals[:, i], [(0, 0), (leading * config["hop_size"], 0)])
            case.check(f"est{i + 1}_sig", signal, case[f"out/est{i + 1}_sig"])
        kept = np.pad(1.0 - np.asarray(losses.frame_assignment(costs)), [(0, 0), (leading, 0)], constant_values=1)
        case.check("assign", kept.ravel(), case["out/assign"])
        case.check("snr", -loss, case["loss/snr"])
        case.check("cost", tf.reduce_mean(metrics["cost"]), case["loss/cost"])
        if case.named("grad"):
            check_gradients(case, model, gradients)
        names = deep_casa.reference_names(model)
        for path, value in moved.items():
            theirs = "out/after/" + str(names.get(path.split("/", 1)[1]))
            if theirs in case:
                case.check(theirs, value, case[theirs])
    except AssertionError as error:
        error.add_note(first_probe_that_differs(case, model, lambda: model(batch["mixture"], training=training)))
        raise


@procedure("deep_casa", "sequential_grouping")
def sequential_grouping(case, folder):
    config = case.config
    model = grouping.SequentialGrouping(
        bins=config["feat_dim"],
        blocks=config["n_tcn_block"],
        dilations=config["n_dilation_each_block"],
        units=config["n_dilated_units"],
        bottleneck=config["n_bottle"],
        embedding_dim=config["embedding_dim"],
        causal=config["causal"],
        tap_keep=0.0,
        scales=config["n_layers"],
    )
    restore(model, case.weights(), folder)
    objective = SequentialGroupingObjective(model, parity=True)
    batch, leading = make_batch(case)
    with tf.GradientTape() as tape:
        loss, metrics = objective(batch, training=False)
        loss = tf.reduce_mean(loss)
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    # Padding frames have embeddings too, but no weight; feeding them as frames shows them.
    padded = {
        "mixture": ops.pad(batch["mixture"], ((0, 0), (leading, 0), (0, 0), (0, 0))),
        "estimates": ops.pad(batch["estimates"], ((0, 0), (0, 0), (leading, 0), (0, 0), (0, 0))),
    }

    def embed(training=False):
        return model((padded["mixture"], padded["estimates"]), training=training)[:, :, 0]

    try:
        case.check("embed", embed(), case["out/embed"])
        _, costs, _ = objective.embed(batch)
        assignment, weights = losses.grouping_targets(costs)
        labels = np.pad(1.0 - np.asarray(assignment), [(0, 0), (leading, 0)], constant_values=1).ravel()
        case.check("assign", np.stack([labels, 1 - labels], axis=1), case["out/assign"])
        case.check("w_seq", np.pad(weights, [(0, 0), (leading, 0)]).reshape(-1, 1), case["out/w_seq"])
        case.check("cost", loss, case["loss/cost"])
        case.check("cost_pit", tf.reduce_mean(metrics["cost"]), case["loss/cost_pit"])
        if "out/embed_taps_dropped" in case:
            # tap_keep 0 drops every droppable tap in training.
            case.check("embed_taps_dropped", embed(training=True), case["out/embed_taps_dropped"])
            dropped = tf.reduce_mean(objective(batch, training=True)[0])
            case.check("cost_taps_dropped", dropped, case["loss/cost_taps_dropped"])
        if case.named("grad"):
            check_gradients(case, model, gradients)
    except AssertionError as error:
        error.add_note(first_probe_that_differs(case, model, embed))
        raise


def first_probe_that_differs(case, model, run):
    """Name of the first layer whose output is off by more than 2e-4 of its standard deviation."""
    names = {
        ours.removesuffix("/kernel"): np.atleast_1d(theirs)[0]
        .split("/", 1)[1]
        .removesuffix("/kernel")
        .removesuffix("/w")
        for ours, theirs in deep_casa.reference_names(model).items()
        if ours.endswith("kernel")
    }
    outputs = {}

    def watch(layer, name):
        original = layer.call

        def call(*arguments, **options):
            result = original(*arguments, **options)
            outputs[name] = np.asarray(result)
            return result

        layer.call = call
        return original

    layers = [layer for layer in model._flatten_layers() if layer.path.split("/", 1)[-1] in names]
    originals = [(layer, watch(layer, names[layer.path.split("/", 1)[1]])) for layer in layers]
    run()
    for layer, original in originals:
        layer.call = original
    compared = 0
    for name, shape in case.meta.get("probes", {}).items():
        value = outputs.get(name)
        if value is None:
            continue
        for order in (None, (0, 3, 2, 1), (0, 2, 1, 3)):
            shown = value if order is None or value.ndim != 4 else value.transpose(order)
            if list(shown.shape) == list(shape):
                break
        else:
            continue
        compared += 1
        theirs = case["probe/" + name]
        if np.max(np.abs(summary(shown)[:9] - theirs[:9])) > 2e-4 * max(theirs[9], 1e-6):
            return f"first probe that differs: {name} (ours {summary(shown)}, reference {theirs})"
    return f"none of {compared} probes differs"


@procedure("deep_casa", "frontend")
def frontend(case, folder):
    fft, hop = case.config["fft"], case.config["hop"]
    settings = FeatureSettings("", "", fft_size=fft, hop_size=hop, sample_rate=case.config["sample_rate"])
    signals = np.stack([case["in/s1"], case["in/s2"], case["in/mix"]]).astype(np.float32) / np.float32(32768)
    features, waves = compute_features(settings, signals)
    assert features.dtype == waves.dtype == np.float32
    case.check("features", features, case["out/features"], 1e-6)
    np.testing.assert_array_equal(waves, case["out/wave"])
    case.check("window", stft.sqrt_hann(fft), case["out/window"], 1e-7)
    spectrum = case["in/spec_real"] + 1j * case["in/spec_imag"]
    samples = len(case["in/mix"])
    case.check("istft_numpy", stft.istft(spectrum, samples, fft, hop), case["out/istft_numpy"])
    mixture = features[-2] + 1j * features[-1]
    case.check("istft_of_mix", stft.istft(mixture, samples, fft, hop), case["out/istft_numpy_of_mix"])
    parts = np.stack([case["in/spec_real"], case["in/spec_imag"]], axis=-1)
    case.check("istft_tf", spectral.istft(parts[None], fft, hop, parity=True)[0], case["out/istft_tf"])
    ours = np.asarray(spectral.stft(signals, fft, hop)).transpose(0, 3, 1, 2).reshape(features.shape)
    case.check("features in the graph", ours, case["out/features"], 1e-5)


@procedure("deep_casa", "padding")
def padding(case, folder):
    bins, scales = case.config["feat_dim"], case.config["n_layers"]
    rows, columns = frequency_padding(bins, scales)
    for frames, *sizes in case["out/table"]:
        out = output_size(int(frames), scales)
        assert sizes == [out + 2 * margin(scales), bins + sum(rows), out, bins + sum(columns)]
    crops = [2 * crop for crop in skip_crops(scales)] + [2 * margin(scales)]
    np.testing.assert_array_equal(case["out/diff_noncausal"], np.stack([crops, crops], axis=1))
    np.testing.assert_array_equal(case["out/diff_causal"], np.stack([np.zeros_like(crops), crops], axis=1))
    frames = int(case["out/causal_77"][0])
    np.testing.assert_array_equal(case["out/causal_77"], [frames, bins + sum(rows), frames, bins + sum(columns)])

    settings = FeatureSettings(str(folder), str(folder))
    names = ["a", "b"]
    for name in names:
        waves = case[f"in/wave_{name}"]
        mixture = np.zeros_like(waves[:1])
        cache.write_array(cache.feature_path(folder, "tr", name), case[f"in/features_{name}"])
        cache.write_array(cache.wave_path(folder, "tr", name), np.concatenate([waves, mixture]))
        cache.write_array(cache.estimate_path(folder, "tr", name), case[f"in/simul_est_{name}"])
    utterances = dataset.cached_utterances(settings, "tr", names, with_estimates=True)
    batches = dataset.training_batches(utterances, 2, seed=0, epoch=0)
    batch = {key: value.numpy() for key, value in next(iter(batches)).items()}
    batch = {key: value[np.argsort(batch["index"])] for key, value in batch.items()}
    longest = batch["mixture"].shape[1]
    leading, side = leading_frames(longest, scales, False), margin(scales)
    np.testing.assert_array_equal(batch["frames"], case["out/simul_seq_len"])

    def stacked(spectra, around, pad):
        padded = np.pad(spectra, [(0, 0), (around + leading, around), pad])
        return padded.reshape(-1, padded.shape[-1])

    for stage in ("simul", "seq"):
        for part, letter in enumerate("ri"):
            mixture = stacked(batch["mixture"][..., part], side, rows)
            np.testing.assert_array_equal(mixture, case[f"out/{stage}_x{letter}"])
            for i in range(2):
                source = stacked(batch["sources"][:, i, ..., part], 0, columns)
                np.testing.assert_array_equal(source, case[f"out/{stage}_y{i + 1}{letter}"])
    for i in range(2):
        estimates = stored_layout(batch["estimates"][:, i], leading, scales)
        np.testing.assert_array_equal(estimates, case[f"out/seq_est{i + 1}"])
    waves = np.pad(batch["waveforms"], [(0, 0), (0, 0), (leading * settings.hop_size, 0)])
    np.testing.assert_array_equal(waves.transpose(0, 2, 1).reshape(-1, 2), case["out/simul_sig"])

    count = case.config["batch_frames"]
    segments = list(dataset.segment_batches(utterances, count, 1, seed=0, epoch=0))
    assert len(segments) == len(case["out/causal_xr"]) == dataset.segment_count(utterances, count)
    found = []
    for segment in segments:
        ours = np.pad(segment["mixture"].numpy()[0], [(0, 0), rows, (0, 0)])
        place = [k for k in range(len(segments)) if np.array_equal(ours[..., 0], case["out/causal_xr"][k])]
        assert len(place) == 1 and np.array_equal(ours[..., 1], case["out/causal_xi"][place[0]])
        found += place
        np.testing.assert_array_equal(segment["waveforms"].numpy()[0].T, case["out/causal_sig"][place[0]])
        sources = np.pad(segment["sources"].numpy()[0], [(0, 0), (0, 0), columns, (0, 0)])
        for i in range(2):
            for part, letter in enumerate("ri"):
                np.testing.assert_array_equal(sources[i, ..., part], case[f"out/causal_y{i + 1}{letter}"][place[0]])
        np.testing.assert_array_equal(segment["frames"].numpy(), case["out/causal_seq_len"][place[0]])
    assert sorted(found) == list(range(len(segments)))


@procedure("deep_casa", "losses")
def loss_functions(case, folder):
    count, frames = case.config["batch"], case.config["frames"]

    def spectra(real, imaginary):
        return tf.constant(np.stack([case[real], case[imaginary]], axis=-1).reshape(count, frames, -1, 2))

    sources = tf.stack([spectra(f"in/y{i}r", f"in/y{i}i") for i in (1, 2)], axis=1)
    estimates = [tf.constant(case[f"in/est{i}"]) for i in (1, 2)]
    waves = tf.constant(case["in/sig"].reshape(count, -1, 2).transpose(0, 2, 1))
    seq_len = case["in/seq_len"]
    with tf.GradientTape() as tape:
        tape.watch(estimates)
        both = tf.stack([tf.reshape(e, (count, frames, -1, 2)) for e in estimates], axis=1)
        costs = losses.frame_costs(both, sources)
        assignment = losses.frame_assignment(costs)
        # The last bin is the reference's dummy, which is dropped before the inverse STFT.
        signals = spectral.istft(losses.permute_frames(both, assignment)[:, :, :, :-1], parity=True)
        loss = -tf.reduce_mean(losses.snr(signals, waves))
    gradients = tape.gradient(loss, estimates)
    case.check("pit_snr", -loss, case["loss/pit_snr"])
    cost = tf.reduce_mean(losses.mean_frame_cost(costs, seq_len, leading=0))
    case.check("pit_cost", cost, case["loss/pit_cost"])
    case.check("assignment_cost_pit", cost, case["loss/assignment_cost_pit"])
    case.check("opt_assign", 1 - np.asarray(assignment).ravel(), case["out/opt_assign"])
    for i in range(2):
        case.check(f"pit_est{i + 1}_sig", signals[:, i], case[f"out/pit_est{i + 1}_sig"])
        gradient = gradients[i].numpy()
        ours = np.concatenate([[np.linalg.norm(gradient)], gradient[10, :4]])
        case.check("grad", ours, case[f"grad/pit_snr_wrt_est{i + 1}"], GRADIENT_TOLERANCE)
    embedding = tf.constant(case["in/embedding"])
    targets, weights = losses.grouping_targets(costs)
    with tf.GradientTape() as tape:
        tape.watch(embedding)
        cost = tf.reduce_mean(losses.grouping_loss(embedding, ops.one_hot(targets, 2), weights))
    kept = 1.0 - np.asarray(targets).ravel()
    case.check("assign", np.stack([kept, 1 - kept], axis=1), case["out/assign"])
    case.check("w_seq", np.reshape(weights, (-1, 1)), case["out/w_seq"])
    case.check("seq_cost", cost, case["loss/seq_cost"])
    gradient = norm_and_head(tape.gradient(cost, embedding))
    case.check("grad", gradient, case["grad/seq_cost_wrt_embedding"], GRADIENT_TOLERANCE)
    x = tf.constant(case["in/uncompress_x"])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = uncompress(x)
    case.check("uncompress", y, case["out/uncompress"])
    case.check("uncompress_grad", tape.gradient(y, x), case["out/uncompress_grad"])
    check_layers(case)


def check_layers(case):
    """The small layers of both networks."""
    weights = case.weights()

    def layer(made, x, *names, **call):
        made.build(x.shape)
        for variable, name in zip(made.weights, names):
            variable.assign(np.reshape(weights["unit/" + name], variable.shape))
        return made(x, **call)

    x4, x3 = tf.constant(case["in/x4"]), tf.constant(case["in/x3"])
    for name, x, theirs in (("LayerNorm", x4, "layer_norm_4d"), ("LayerNorm_1", x3, "layer_norm_3d")):
        case.check(theirs, layer(norm.GlobalNorm(), x, f"{name}/gamma", f"{name}/beta"), case["out/" + theirs])
    for name, x, theirs in (("cln4", x4, "causal_layer_norm_4d"), ("cln3", x3, "causal_layer_norm_3d")):
        ours = layer(norm.CumulativeNorm(), x, f"{name}/scale", f"{name}/offset")
        case.check(theirs, ours, case["out/" + theirs])
    prelu = keras.layers.PReLU(shared_axes=[1])
    case.check("prelu", layer(prelu, x3, "prelu/alpha"), case["out/prelu"])
    for causal, name, theirs in ((False, "dc", "dilated_conv"), (True, "dcc", "dilated_conv_causal")):
        made = conv.DilatedDepthwiseConv1D(2, causal)
        case.check(theirs, layer(made, x3, f"{name}/w"), case["out/" + theirs])
    pointwise = conv.PointwiseConv(case["out/conv1d"].shape[-1], name="c1")
    case.check("conv1d", layer(pointwise, x3, "c1/w", "c1/biases"), case["out/conv1d"])
    batch_norm = norm.batch_norm("bn")
    names = [f"bn/{part}" for part in ("scale", "offset", "pop_mean", "pop_var")]
    ours = layer(batch_norm, x4, *names, training=False)
    case.check("batch_norm_eval", ours, case["out/batch_norm_eval"])
    case.check("batch_norm_train", batch_norm(x4, training=True), case["out/batch_norm_train"])
    for variable, part in ((batch_norm.moving_mean, "pop_mean"), (batch_norm.moving_variance, "pop_var")):
        case.check(part, variable.numpy(), case[f"out/after/unit/bn/{part}"])


@procedure("deep_casa", "decode")
def decode(case, folder):
    causal = case.config["causal"]
    batch, leading = batch_of_features(case, causal)
    estimates = batch["estimates"][0].numpy()
    embedding = case["in/embedding"][0, leading:, None]
    model = grouping.SequentialGrouping(
        causal=causal, embedding_dim=case.config["embedding_dim"], blocks=1, dilations=1, units=2, bottleneck=2
    )
    decoder = Decoder(SequentialGroupingObjective(model, parity=True), case.config["np_random_seed"])
    assigned = decoder.assignment(batch["mixture"][0].numpy(), estimates, embedding)
    samples = len(case["in/mix"])
    signals = to_signals(clustering.permute(estimates, assigned), samples, 256, 64, parity=True)
    kept = 1 - assigned
    theirs = [case["out/res_1"], case["out/res_2"]]
    if not causal:
        active = clustering.active_frames(estimates)
        np.testing.assert_array_equal(active, case["out/active"])
        if not np.array_equal(kept, case["out/assigns"]):  # which cluster is the first is a matter of the seed
            kept, signals = 1 - kept, signals[::-1]
    np.testing.assert_array_equal(kept, case["out/assigns"])
    oracle = losses.frame_assignment(losses.frame_costs(estimates[None], batch["sources"]))[0]
    np.testing.assert_array_equal(1 - np.asarray(oracle), case["out/oracle_assign"])
    for i in range(2):
        case.check(f"res_{i + 1}", signals[i], theirs[i])
    if not causal:
        centroids = clustering.kmeans(embedding[active][:, 0], 2, case.config["np_random_seed"])
        errors = [np.abs(centroids[order] - case["out/centroids"]).max() for order in ([0, 1], [1, 0])]
        assert min(errors) < 1e-4
    rows = np.stack([case["in/s1"], case["in/s2"]]).astype(np.float32) / np.float32(32768)
    np.testing.assert_array_equal(rows, case["out/bin"][:2])


@procedure("deep_casa", "train_steps")
def train_steps(case, folder):
    flag_list = case.config["flags"]
    values = {flag.lstrip("-"): int(value) for flag, value in zip(flag_list[::2], flag_list[1::2])}
    causal = "causal" in case.config["script"]
    words = case.config["optimizer"].split()
    beta_2 = float(words[words.index("beta2") + 1]) if "beta2" in words else 0.999
    optimizer = make_optimizer(words[0], case.config["lr"], beta_2)
    if case.config["script"].startswith("simul"):
        model = DenseUNet(channels=values["n_channels"], causal=causal, dropout=0.0)
        objective = SimultaneousGrouping(model, parity=True)
        shown = {"snr": "snr", "cost": "cost"}
    else:
        model = grouping.SequentialGrouping(
            dilations=values["n_dilation_each_block"],
            units=values["n_dilated_units"],
            bottleneck=values["n_bottle"],
            embedding_dim=values["embedding_dim"],
            causal=causal,
            tap_keep=1.0,
        )
        objective = SequentialGroupingObjective(model, parity=True)
        shown = {"cost": "loss", "cost_pit": "cost"}
    weights = case.weights()
    restore(model, weights, folder)
    optimizer.build(model.trainable_variables)
    batch, _ = batch_of_features(case, causal)
    step = TrainStep(model, optimizer, objective, tf.distribute.get_strategy(), 1)
    step.compile(common.free_lengths(batch))
    history = [step([batch], case.config["lr"]) for _ in range(case.config["steps"])]
    loss, metrics = objective(batch, training=False)
    history.append({"loss": tf.reduce_mean(loss)} | {k: tf.reduce_mean(v) for k, v in metrics.items()})
    for theirs, ours in shown.items():
        case.check(theirs, [float(values[ours]) for values in history], case["out/" + theirs], UPDATE_TOLERANCE)
    after = {}
    names = deep_casa.reference_names(model)
    for ours, variable in checkpoint.weight_names(model.variables).items():
        theirs = np.atleast_1d(names.get(ours, []))
        parts = np.split(variable.numpy(), len(theirs), axis=-1) if len(theirs) else []
        after |= {name: part.reshape(weights[name].shape) for name, part in zip(theirs, parts)}
    assert set(after) == set(weights)
    for name, update in case.named("out/update").items():
        change = norm_and_head(after[name] - weights[name])[0]
        assert abs(change - update[0]) <= UPDATE_TOLERANCE * max(update[0], 1e-6), name
        case.check(name, norm_and_head(after[name])[1:], update[1:])


@procedure("deep_casa", "lr_schedule")
def lr_schedule(case, folder):
    for run in case.config["runs"]:
        stage_two, causal = run["script"].startswith("seq"), "causal" in run["script"]
        segments = run["steps_per_epoch"] is not None
        examples = run["steps_per_epoch"] * run["batch_size"] if segments else run["training_files"]
        epochs = Epochs(examples, run["batch_size"], run["epochs"], whole=causal and not stage_two)
        rate, decay, patience, worst = (2.5e-4, 0.93, 3.9, 1000.0) if stage_two else (1e-4, 0.84, 5.9, -100.0)
        rule = rules.OriginalRule(epochs, rate, decay, patience)
        state = LoopState(rate=rate, best_score=worst)
        scores, rates, saved = iter(case[run["validation"]]), [], []
        loop.run_epochs(
            epochs,
            rule,
            state,
            train_step=lambda step, rate, rates=rates: rates.append(rate),
            validate=lambda step, scores=scores: next(scores),
            save=lambda s, best, saved=saved: saved.append([s.step, s.best_score, s.best_step, s.rate]),
            higher_is_better=not stage_two,
            finish=False,
        )
        name = run["name"]
        assert len(rates) == case[f"loss/{name}_total_steps"]
        assert len(saved) == case[f"loss/{name}_validations"]
        np.testing.assert_allclose(rates, case[f"out/{name}_lr"], rtol=1e-6)
        np.testing.assert_allclose(saved, case[f"out/{name}_state"], rtol=1e-6)
        np.testing.assert_array_equal([row[0] for row in saved], case[f"out/{name}_saved_steps"])


@procedure("deep_casa", "active_level")
def active_level(case, folder):
    for name, recording in case.named("in").items():
        for rate in (8, 16):
            signal = recording / 32768 if rate == 16 else case["out/resampled_8k_" + name]
            for revision in mixing.LEVEL_REVISIONS:
                level, activity = mixing.active_level(signal, rate * 1000, revision)
                key = f"loss/{name}_{rate}_"
                np.testing.assert_allclose(level, case[f"{key}level_{revision}"], rtol=1e-8)
                np.testing.assert_allclose(activity, case[f"{key}activity_{revision}"], rtol=1e-8)


@procedure("deep_casa", "wsj0_mixing")
def wsj0_mixing(case, folder):
    recordings = {name: (x / 32768).astype(np.float32) for name, x in case.named("in").items()}
    for row in case.meta["lines"]:
        fields = row["line"].split()
        line = lists.MixtureLine(tuple(fields[::2]), tuple(fields[1::2]))
        assert line.name == row["name"]
        stems = [pathlib.PurePosixPath(path).stem for path in line.paths]
        levels = [case.meta["activlev"][stem] for stem in stems]
        for rate in (8000, 16000):
            sources = [audio.resample(recordings[stem], 16000, rate) for stem in stems]
            for mode in mixing.MODES:
                mixture, scaled = mixing.mix_sources(sources, levels, line.gains_db, mode)
                signals = dict(zip(lists.source_names(len(scaled)), [*scaled, mixture]))
                for kind, signal in signals.items():
                    key = f"{row['speakers']}spk/{rate // 1000}k/{mode}/{kind}/{row['name']}"
                    ours = audio.to_int16(signal)
                    if f"out/{key}" in case:
                        np.testing.assert_array_equal(ours, case[f"out/{key}"])
                    else:
                        np.testing.assert_allclose(summary(ours), case[f"probe/{key}"], rtol=1e-9, atol=1e-6)


@procedure("deep_casa", "script_outputs")
def script_outputs(case, folder):
    """Runs the scripts as a person does, on checkpoints of the original."""
    names = sorted({key.split("_", 1)[1] for key in case.named("in")})
    for name in names:
        for source in ("s1", "s2", "mix"):
            path = lists.mixture_paths(folder / "data", "tt", name)[source]
            audio.write_pcm16(path, case[f"in/{source}_{name}"], 8000)
    (folder / "lists").mkdir()
    (folder / "lists" / "mix_2_spk_min_tt_mix").write_text("\n".join(names) + "\n")
    prefixes = {
        "simul": write_saver_checkpoint(f"{folder}/a/simul.ckpt_step_1", case.weights()),
        "simul_causal": write_saver_checkpoint(f"{folder}/b/simul.ckpt_step_1", case.weights("weights_simul_causal")),
        "seq_causal": write_saver_checkpoint(f"{folder}/c/seq.ckpt_step_1", case.weights("weights_seq_causal")),
    }

    def run(script, *flags):
        speech.succeed(folder, script, *map(str, flags))

    def compare(exp_name, output, key):
        for name in names:
            rows = np.fromfile(folder / f"exp/{exp_name}/output_tt/{output}/{name}.bin", "<f4")
            rows = rows.reshape(6, -1)
            case.check(f"{key} {name}", rows[2:4], case[f"out/{key}_bin_{name}"])
            np.testing.assert_array_equal(rows[4], rows[5])

    channels = ["--parity", "--n_channels", case.config["n_channels"]]
    sizes = [x for name, value in case.config["seq"].items() for x in (f"--{name}", value)]
    run("feat/feat_gen.py", "--exp_name", "one", "--sets", "tt")
    (folder / "exp/two").mkdir()
    (folder / "exp/two/feat").symlink_to(folder / "exp/one/feat")
    simul = ["nn/simul_group.py", *channels, "--resume_model"]
    run(*simul, prefixes["simul"], "--is_deploy", 1, "--exp_name", "one")
    compare("one", "oracle_order", "simul")
    run(*simul, prefixes["simul_causal"], "--is_deploy", 1, "--exp_name", "two", "--causal")
    compare("two", "oracle_order", "simul_causal")
    run(*simul, prefixes["simul_causal"], "--is_deploy", 2, "--exp_name", "two", "--causal", "--export_sets", "tt")
    seq = ["nn/seq_group.py", "--parity", "--causal", "--is_deploy", 1, "--resume_model", prefixes["seq_causal"]]
    run(*seq, "--exp_name", "two", *sizes)
    compare("two", "files", "seq_causal")
