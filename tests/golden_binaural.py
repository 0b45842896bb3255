"""Procedures of the golden cases of Binaural TasNet: networks, loss, schedule, training steps, scores, audio."""

import numpy as np
import soundfile
import tensorflow as tf
from golden_case import UPDATE_TOLERANCE, norm_and_head, summary

from models import losses
from models.binaural_tasnet.network import MimoTasnet, interaural_features, interaural_spectra, nearest_frames
from nn.checkpoints import ours as checkpoint
from nn.checkpoints.readers import of_arrays
from nn.scoring import spatial_metrics
from nn.systems.binaural_tasnet.training import BinauralSeparation, write_audio
from nn.training import loop, rules
from nn.training.optimizers import make_optimizer
from nn.training.step import TrainStep
from nn.training.task import Epochs, LoopState

NORMS = {"gLN": "global", "cLN": "channel"}


def make_model(case):
    """The model of a case, with its weights sent through the converter; and {our weight: reference name}."""
    config = case.config
    reader = of_arrays(case.meta["case"], case.weights())
    settings = reader.settings() | {
        "wiring": config["yaml"].split("-")[0],
        "norm": NORMS[config["norm_type"]],
        "causal": config["causal"],
        "mask": config["mask_nonlinear"],
        "parity": True,
    }
    model = MimoTasnet(**settings)
    checkpoint.restore_weights(reader, "mimo_tasnet", model)
    names = reader.reference_names(model)
    own = [v for v in model.trainable_variables if not v.path.split("/")[1].startswith("projection")]
    assert case.meta.get("parameters") in (None, sum(int(np.prod(v.shape)) for v in own))
    for key, value in dict(N_encoder_out="filters", kernel_size="window", B="bottleneck", H="units", P="taps").items():
        assert model.settings[value] == config[key]
    return model, names


def sources(array):
    """[..., time, ear, source] -> ours, [..., source, time, ear]."""
    return np.moveaxis(array, -1, -3)


def in_decibels(ours, theirs, tolerance=1e-3):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


def reference_layout(array, shape):
    return np.reshape(array, shape[::-1]).T


def model_case(case, folder):
    model, names = make_model(case)
    batch = {"mixture": tf.constant(case["in/mix"]), "sources": tf.constant(sources(case["in/targets"]))}
    least = 5e-4 if case.config["yaml"].startswith("cross") else 2e-5
    try:
        case.check("est_source", model(batch["mixture"]), sources(case["out/est_source"]), least)
        check_parts(case, model, batch["mixture"], least)
    except AssertionError as error:
        error.add_note(first_probe_that_differs(case, model, batch["mixture"]))
        raise
    objective = BinauralSeparation(model)
    with tf.GradientTape() as tape:
        loss, _ = objective(batch, training=True)
        mean = tf.reduce_mean(loss)
    gradients = tape.gradient(mean, [v.value for v in model.trainable_variables])
    in_decibels(loss, case["out/loss_per_item"])
    in_decibels(mean, case["loss/neg_snr_pit"])
    repeated = np.repeat(case["in/mix"][:, None], case.config["num_spks"], axis=1)
    in_decibels(-losses.binaural_pit_snr(repeated, batch["sources"]), case["out/baseline_per_item"])
    # The projection is no part of a checkpoint, nor of what is clipped.
    total = case["loss/total_grad_norm"]
    squares = [
        tf.reduce_sum(g**2)
        for v, g in zip(model.trainable_variables, gradients)
        if not names[v.path.split("/", 1)[1]].startswith("crossconv")
    ]
    np.testing.assert_allclose(np.sqrt(np.sum(squares)), total, rtol=max(1e-3, case.meta["grad_tolerance"]))
    shapes = {row["name"]: tuple(row["shape"]) for row in case.meta["weights"]}
    for variable, gradient in zip(model.trainable_variables, gradients):
        name = names[variable.path.split("/", 1)[1]]
        if "grad/" + name not in case:
            continue
        theirs = case["grad/" + name]  # of weights with fewer than four values shorter
        ours = norm_and_head(reference_layout(gradient.numpy(), shapes[name]))[: len(theirs)]
        tolerance = max(1e-3, 2 * case.meta["grad_tolerance"])
        assert np.max(np.abs(ours - theirs)) <= tolerance * (theirs[0] + 1e-3 * total), (name, ours, theirs)


def check_parts(case, model, mixture, least):
    """Encodings and masks of the cases that have them whole."""
    if "out/encoderL#0" not in case:
        return
    ears = [mixture[..., 0], mixture[..., 1]]
    encodings = model.encode(ears)
    seen = encodings
    if model.wiring == "cross":
        beside = model.project(ears, encodings[0].shape[1])
        seen = [tf.concat(pair, axis=-1) for pair in zip(encodings, beside)]
    # The left separator sees the first calls of both encoders, the right one the second ones.
    calls = {"L": ("L#0",), "R": ("R#0",)}
    if model.wiring == "parallel":
        calls = {"L": ("L#0", "R#0"), "R": ("R#1", "L#1")}
    for side, encoding, masks in zip("LR", encodings, model.separate(seen)):
        theirs = np.concatenate([case[f"out/encoder{call}"] for call in calls[side]], axis=1)
        case.check("encoder", encoding, theirs.transpose(0, 2, 1), least)
        masks = np.asarray(model.masks(masks)).transpose(2, 0, 3, 1)
        case.check("masknet", masks, case[f"out/masknet{side}#0"][:, :, : masks.shape[2]], least)


def first_probe_that_differs(case, model, mixture):
    """Name of the first dilated block of ours whose output is off."""
    ears = [mixture[..., 0], mixture[..., 1]]
    seen = model.encode(ears)
    if model.wiring == "cross":
        beside = model.project(ears, seen[0].shape[1])
        seen = [tf.concat(pair, axis=-1) for pair in zip(seen, beside)]
    for separator, side, x in zip(model.separators, "LR", seen):
        x = separator.enter(x)
        for block in separator.blocks:
            x = block(x)
            probe = f"masknet{side}.temporal_conv_net.temporal{block.name}#0"
            if "probe/" + probe in case:
                ours, theirs = summary(x), case["probe/" + probe]
                if np.max(np.abs(ours[:10] - theirs[:10])) > 2e-4 * max(theirs[9], 1e-6):
                    return f"first probe that differs: {probe} (ours {ours}, reference {theirs})"
    return "none of the probes of the blocks differs"


def cross_features(case, folder):
    mixture = tf.constant(case["in/mix"])
    ears = (mixture[..., 0], mixture[..., 1])
    spectra = np.stack([np.stack(parts, axis=-1) for parts in interaural_spectra(ears)])
    case.check("stft", spectra.transpose(0, 1, 3, 2, 4), case["out/stft"])
    features = {name: np.asarray(x) for name, x in interaural_features(*ears).items()}
    ild = features["ild"].transpose(0, 2, 1)
    in_decibels(ild, case["out/ILD"], 2e-3)
    places = np.asarray(nearest_frames(ild.shape[2], case.config["frames_after_interpolation"]))
    in_decibels(ild[:, :, places], case["out/ILD_upsample"], 2e-3)
    # Where one ear is silent the reference has a phase of rounding.
    loud = (np.linalg.norm(case["out/stft"], axis=-1) > 1e-6).all(axis=0)
    for name in ("sin", "cos"):
        ours = features[name].transpose(0, 2, 1)
        np.testing.assert_allclose(ours[loud], case[f"out/{name}_ipd"][loud], atol=2e-3)


def loss_function(case, folder):
    for name, about in case.config.items():
        estimates, targets = (tf.constant(sources(case[f"in/{name}/{x}"])) for x in ("estimate", "target"))
        with tf.GradientTape() as tape:
            tape.watch(estimates)
            loss = -losses.binaural_pit_snr(estimates, targets)
            mean = tf.reduce_mean(loss)
        pairwise = losses.pairwise_binaural_snr(estimates, targets)
        in_decibels(loss, case[f"out/{name}/loss"])
        if about["kind"] in ("mixed", "offset"):
            in_decibels(-pairwise, case[f"out/{name}/pairwise"])
            gradient = tape.gradient(mean, estimates)
            case.check("grad_of_mean", gradient, sources(case[f"out/{name}/grad_of_mean"]), 1e-3)
        orders = losses.permutations(about["sources"])
        chosen = orders[np.argmax(losses.permutation_costs(pairwise), axis=-1)]
        np.testing.assert_array_equal(chosen, case[f"out/{name}/perm"])
        for estimate, target, theirs in zip(estimates, targets, case[f"out/{name}/loss_float64"]):
            pairwise = spatial_metrics.pairwise_snr(estimate, target)
            order = spatial_metrics.best_order(pairwise)
            in_decibels(-np.mean(pairwise[order, np.arange(len(order))]), theirs)


def schedule(case, folder):
    config = case.config
    losses_seen = case["in/valid_loss"]
    rule = rules.AnchorRule(
        config["lr"], False, config["factor"], config["patience"], config["dont_halve_until_epoch"], config["lr_min"]
    )
    state = LoopState(rate=config["lr"])
    rates, anchors, scores = [], [], iter([0.0, *losses_seen])  # the first is that of the untrained model
    epochs = Epochs(1, 1, len(losses_seen) + 1, whole=True)

    def train_step(step, rate):
        rates.append(rate)
        anchors.append(state.plateau_loss)

    loop.run_epochs(
        epochs,
        rule,
        state,
        train_step=train_step,
        validate=lambda step: next(scores),
        save=lambda state, best: None,
        higher_is_better=False,
        finish=False,
    )
    np.testing.assert_allclose(rates[:-1], case["out/lr"], rtol=1e-12)
    np.testing.assert_allclose(rates[1:], case["out/next_lr"], rtol=1e-12)
    np.testing.assert_allclose(anchors[1:], case["out/anchor"], rtol=1e-12)


def train_steps(case, folder):
    config = case.config
    model, names = make_model(case)
    optimizer = make_optimizer("adam", config["lr"])
    optimizer.build(model.trainable_variables)
    mixtures, targets = case["in/mix"], sources(case["in/targets"])
    step = TrainStep(
        model,
        optimizer,
        BinauralSeparation(model),
        tf.distribute.get_strategy(),
        mixtures.shape[1],
        clip_norm=max(0.0, config["clip_grad_norm"]),
        least_loss=config["threshold"] if config["threshold_byloss"] else None,
        largest_loss=config["loss_upper_lim"],
    )
    step.compile({"mixture": tf.TensorSpec([None, None, 2]), "sources": tf.TensorSpec([None, None, None, 2])})
    ours_of = {theirs: ours for ours, theirs in names.items()}
    variables = checkpoint.weight_names(model.trainable_variables)
    rows = [(row["name"], tuple(row["shape"]), variables[ours_of[row["name"]]]) for row in case.meta["weights"]]
    norms, firsts, found = [], [], []
    for mixture, target in zip(mixtures, targets):
        batch = {"mixture": tf.constant(mixture), "sources": tf.constant(target)}
        loss = case["out/loss_per_item"][len(found)]
        in_decibels(BinauralSeparation(model)(batch)[0], loss, 2e-3)
        found.append({name: float(value) for name, value in step([batch], config["lr"]).items()})
        arrays = [reference_layout(variable.numpy(), shape) for _, shape, variable in rows]
        norms.append([np.linalg.norm(array) for array in arrays])
        firsts.append([array.ravel()[0] for array in arrays])
    skipped = np.isnan(case["out/grad_norm_before_clip"])
    np.testing.assert_array_equal([row.get("left_out", 0) > 0 for row in found], skipped)
    in_decibels(np.nan_to_num([row["loss"] for row in found]), case["out/loss_per_step"], 2e-3)
    norm = np.array([row["gradient_norm"] for row in found])
    np.testing.assert_allclose(norm[~skipped], case["out/grad_norm_before_clip"][~skipped], rtol=UPDATE_TOLERANCE)
    np.testing.assert_allclose(norms, case["out/param_norm_after_step"], rtol=UPDATE_TOLERANCE, atol=1e-6)
    # Adam moves every weight by about the rate, whichever way the gradient points, were it nothing but rounding.
    steps = np.arange(1, 1 + len(firsts))[:, None]
    error = np.abs(np.array(firsts) - case["out/param_first_after_step"])
    assert np.all(error <= 2.1 * config["lr"] * steps) and np.mean(error > 1e-5) < 0.02, error.max()


def spatial_scores(case, folder):
    for name, about in case.config.items():
        rate = about["sample_rate"]
        mixture, targets, estimates = (case[f"in/{name}/{x}"][0] for x in ("mix", "target", "estimate"))
        targets, estimates = sources(targets), sources(estimates)
        for kind, signals in (("target", targets), ("estimate", estimates)):
            lags = [spatial_metrics.reference_time_difference(signal, rate) for signal in signals]
            np.testing.assert_allclose(lags, case[f"out/{name}/itd_{kind}_us"], rtol=1e-12)
            levels = [spatial_metrics.reference_level_difference(signal) for signal in signals]
            np.testing.assert_allclose(levels, case[f"out/{name}/ild_{kind}_db"], rtol=1e-4, atol=1e-4)
        found = spatial_metrics.score(estimates, targets, mixture, rate)
        for ours, theirs in spatial_metrics.columns(parity=True).items():
            tolerance = 1e-9 if ours == "delta_ITD" else 1e-3
            in_decibels(found[theirs], case[f"out/{name}/{ours}"], tolerance)
        in_decibels(found["snr"] - found["snr_i"], case[f"out/{name}/snr_baseline"])


def saved_audio(case, folder):
    names = {file: file.removesuffix(".wav") for file in case.config["files"]}
    item = names[case.config["files"][0]].split("_")[0].removeprefix("item")
    mixture, targets, estimates = case["in/mix"][0], sources(case["in/targets"])[0], sources(case["in/estimates"])[0]
    write_audio(str(folder), item, mixture, targets, estimates, case.config["sample_rate"], parity=True)
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    for file in names:
        samples, rate = soundfile.read(folder / file, dtype="int16")
        assert rate == case.config["sample_rate"] and soundfile.info(folder / file).subtype == case.config["subtype"]
        np.testing.assert_array_equal(samples, case["out/" + file])


PROCEDURES = {
    ("binaural", "model"): model_case,
    ("binaural", "cross_features"): cross_features,
    ("binaural", "loss"): loss_function,
    ("binaural", "lr_schedule"): schedule,
    ("binaural", "train_steps"): train_steps,
    ("binaural", "metrics"): spatial_scores,
    ("binaural", "save_audio"): saved_audio,
}
