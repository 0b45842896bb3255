"""Procedures of the golden cases of Looking to Listen: network, training, spectrograms, masks, scores, filters."""

import re

import numpy as np
import tensorflow as tf
from golden_case import UPDATE_TOLERANCE, norm_and_head, summary

from feat.signals import postprocess
from models import losses
from models.looking_to_listen import spectra as compressed_spectra
from models.looking_to_listen.network import (
    LookingToListen,
    apply_mask,
    compress_mask,
    expand_mask,
    from_asteroid,
    ratio_mask,
    to_asteroid,
)
from models.looking_to_listen.spectra import Frontend
from nn.checkpoints import ours as checkpoint
from nn.checkpoints.readers import of_arrays
from nn.scoring import metrics
from nn.systems.looking_to_listen.training import AudioVisualSeparation
from nn.training import rules
from nn.training.optimizers import make_optimizer
from nn.training.step import TrainStep
from nn.training.task import LoopState

EDGE = 200  # samples at the ends of waves that the reference divides by next to nothing


# Networks -------------------------------------------------------------------------------------------


def make_model(case):
    """(model, {our weight: reference name}) of a case, its weights sent through the converter of --resume_model."""
    config = case.config
    reader = of_arrays(case.meta["case"], case.weights())
    settings = reader.settings() | {"reshape": config.get("reshape", "")}
    known = dict(num_person="faces", audio_channels="channels", audio_last_channels="last_channels", fc_units="units")
    for name in config.keys() & {*known, "video_channels", "embedding_dim", "lstm_units", "frames", "bins"}:
        assert settings[known.get(name, name)] == config[name], name
    model = LookingToListen(**settings | {"dropout": config.get("dropout", 0.2)})
    checkpoint.restore_weights(reader, "looking_to_listen", model)
    return model, reader.reference_names(model)


def make_batch(case, model):
    """Spectrograms in our layout."""
    if case.config.get("layout") == "asteroid":
        mixture = from_asteroid(case["in/audio"])
        sources = from_asteroid(case["in/target"]) if "in/target" in case else None
    else:
        mixture = case["in/audio"].transpose(0, 2, 3, 1)
        sources = case["in/target"].transpose(0, 4, 2, 3, 1) if "in/target" in case else None
    faces = [case[f"in/video_{i + 1}"] for i in range(model.faces)]
    return tf.constant(mixture), sources, tf.constant(np.stack(faces, axis=1))


def reference_layout(case, estimates):
    """[batch, faces, frames, bins, 2] -> as `out/estimate` has it."""
    if case.config.get("layout") == "asteroid":
        return np.asarray(to_asteroid(estimates))
    return np.asarray(estimates).transpose(0, 4, 2, 3, 1)


def model_case(case, folder):
    model, names = make_model(case)
    mixture, sources, embeddings = make_batch(case, model)
    estimates = model((mixture, embeddings))
    stride = case.meta.get("out_stride", {}).get("estimate", 1)
    try:
        found = reference_layout(case, estimates)
        case.check("estimate", found.reshape(-1)[::stride] if stride > 1 else found, case["out/estimate"])
    except AssertionError as error:
        error.add_note(first_probe_that_differs(case, model, mixture, embeddings))
        raise
    if "loss/discriminative" not in case:
        return
    with tf.GradientTape() as tape:
        loss = losses.discriminative_loss(model((mixture, embeddings)), sources, case.config.get("gamma", 0.1))
        mean = tf.reduce_mean(loss)
    check_loss(case, mean)
    check_gradients(case, model, names, tape.gradient(mean, [v.value for v in model.trainable_variables]))


def check_loss(case, loss):
    np.testing.assert_allclose(loss, case["loss/discriminative"], rtol=1e-4)


def check_gradients(case, model, names, gradients, left_out=()):
    """Compares `grad/`, but for weights whose names match `left_out`."""
    shapes = {row["name"]: row["shape"] for row in case.meta["weights"]}
    norms = [case["grad/" + name][0] for name in shapes if "grad/" + name in case]
    for variable, gradient in zip(model.trainable_variables, gradients):
        name = names[variable.path.split("/", 1)[1]]
        name = name.replace("lstm.bias_l0", "lstm.bias_ih_l0")
        if "grad/" + name not in case or (left_out and re.fullmatch(left_out, name)):
            continue
        theirs = case["grad/" + name]
        ours = norm_and_head(to_torch(gradient, shapes[name]))[: len(theirs)]
        error = np.max(np.abs(ours - theirs))
        assert error <= 1e-3 * theirs[0] + 1e-6 * max(norms), (name, ours, theirs)


def to_torch(array, shape):
    """An array of ours in the layout of the reference."""
    return np.asarray(array).reshape(shape[::-1]).T


def first_probe_that_differs(case, model, mixture, embeddings):
    """Name of the first layer whose output is off."""
    x = tf.transpose(mixture, (0, 2, 1, 3))
    for i, layer in enumerate(model.audio_layers):
        x = layer(x)
        if note := differs(case, f"audio_output.batch_norm{i + 1}", np.transpose(x, (0, 3, 2, 1)), relu=True):
            return note
    frames = mixture.shape[1]
    heard = model.listen(mixture)
    seen = [model.look(embeddings[:, i], frames) for i in range(model.faces)]
    notes = [differs(case, "audio_output", np.transpose(heard, (0, 2, 1)))]
    notes += [
        differs(case, "video_output" + (f"#{i + 1}" if i else ""), np.transpose(x, (0, 2, 1)))
        for i, x in enumerate(seen)
    ]
    units = model.decide(tf.concat([heard, *seen], axis=-1))
    notes += [differs(case, "complex_mask_layer", units)]
    return next(filter(None, notes), "none of the probes differs")


def differs(case, probe, ours, relu=False):
    """A note if an array is not what a probe says; where `relu`, the probe is of what goes into the rectifier."""
    if "probe/" + probe not in case:
        return ""
    ours, theirs = summary(ours), case["probe/" + probe]
    if relu:
        ours, theirs = ours[:8], np.maximum(theirs[:8], 0)
    scale = max(np.max(np.abs(theirs[:8])), 1e-6)
    return f"first probe that differs: {probe}" if np.max(np.abs(ours[:8] - theirs[:8])) > 2e-4 * scale else ""


def train_case(case, folder):
    config = case.config
    model, names = make_model(case)
    mixture, sources, embeddings = make_batch(case, model)
    batch = {"mixture_spectrum": mixture, "source_spectra": tf.constant(sources), "embeddings": embeddings}
    objective = AudioVisualSeparation(model, gamma=config["gamma"])

    def of_spectra(batch, training):
        estimates = model((batch["mixture_spectrum"], batch["embeddings"]), training=training)
        return objective.spectral_loss(estimates, batch["source_spectra"]), {}

    starts = {v.path: v.numpy() for v in model.variables}
    with tf.GradientTape() as tape:
        estimates = model((mixture, embeddings), training=True)
        loss = tf.reduce_mean(losses.discriminative_loss(estimates, sources, config["gamma"]))
    case.check("estimate", reference_layout(case, estimates), case["out/estimate"], 2e-4)
    check_loss(case, loss)
    before_norm = r"(audio|video)_output\.conv\d+\.bias"
    check_gradients(case, model, names, tape.gradient(loss, [v.value for v in model.trainable_variables]), before_norm)
    theirs = {name: key for key, name in names.items()}
    variables = checkpoint.weight_names(model.variables)
    for name, array in case.named("out/after_step1").items():
        case.check(name, variables[theirs[name]], array, UPDATE_TOLERANCE)
    for variable in model.variables:
        variable.assign(starts[variable.path])
    optimizer = make_optimizer("adam", config["base_lr"])
    optimizer.build(model.trainable_variables)
    step = TrainStep(model, optimizer, of_spectra, tf.distribute.get_strategy(), len(mixture))
    step.compile({name: tf.TensorSpec(value.shape) for name, value in batch.items()})
    rule = rules.CyclicRule(config["base_lr"], config["max_lr"], config["step_size_up"])
    rates, found = [], []
    state = LoopState(rate=rule.initial)
    for state.step in range(1, config["steps"] + 1):
        rates.append(rule.rate(state))
        found.append(float(step([batch], rates[-1])["loss"]))
    # The rate that is in force after each step.
    after = case["out/lr_trajectory"]
    state.step += 1
    rates.append(rule.rate(state))
    shift = 0 if abs(after[0] - rates[0]) < abs(after[0] - rates[1]) else 1
    np.testing.assert_allclose(rates[shift : shift + len(after)], after, rtol=1e-9)
    case.check("loss_trajectory", found, case["out/loss_trajectory"], 2e-3)
    loss = tf.reduce_mean(losses.discriminative_loss(model((mixture, embeddings)), sources, config["gamma"]))
    np.testing.assert_allclose(loss, case["loss/eval_after"], rtol=1e-2)


# Spectrograms ---------------------------------------------------------------------------------------


def strict_frontend(kind="seed"):
    return Frontend(kind, "separate" if kind == "seed" else "none", fixed=True, strict=True)


def frontend(case, folder):
    config = case.config
    known = (config["n_fft"], config["hop"], config["window"], config["power"], config["fixed_length"])
    assert known == (
        compressed_spectra.FFT_SIZE, compressed_spectra.HOP, compressed_spectra.WINDOW, compressed_spectra.POWER,
        compressed_spectra.FIXED_SAMPLES,
    )  # fmt: skip
    bins, frames = config["spec_stride"]
    for name, wave in case.named("in").items():
        ours = strict_frontend()
        spectrum = ours.analyse(wave[None])[0]
        case.check("spec_" + name, np.transpose(spectrum[0], (1, 0, 2))[::bins, ::frames], case["out/spec_" + name])
        check_wave(case, "wave_" + name, ours.synthesise(spectrum)[0], config["wave_stride"])


def check_wave(case, name, ours, stride):
    """Without the ends, where the sum of squared windows is next to nothing."""
    inside = slice(-(-EDGE // stride), -(EDGE // stride))
    case.check(name, np.asarray(ours)[::stride][inside], case["out/" + name][inside], 5e-4)


def frontend_inverse(case, folder):
    spectrum = case["in/spec"].astype(np.float32).transpose(1, 0, 2)
    check_wave(case, "wave", strict_frontend().synthesise(spectrum), case.config["wave_stride"])


def frontend_asteroid(case, folder):
    filters = compressed_spectra.asteroid_filters()
    for name, array in case.named("out").items():
        if name.startswith("filter_"):
            column = filters[:, int(name.removeprefix("filter_"))]
            case.check(name, column[:: len(column) // len(array)], array)
    plain = compressed_spectra.asteroid_encode(case["in/wave"])
    encoded = strict_frontend("asteroid").analyse(case["in/wave"][None])[0][0]
    for name, ours in (("stft", plain), ("encoded", encoded)):
        found = np.asarray(to_asteroid(ours))
        rows, columns = (-(-a // b) for a, b in zip(found.shape, case["out/" + name].shape))
        case.check(name, found[::rows, ::columns], case["out/" + name])
    decoded = np.asarray(strict_frontend("asteroid").synthesise(encoded, case.config["final_len"]))
    case.check("decoded", decoded[:: -(-len(decoded) // len(case["out/decoded"]))], case["out/decoded"])


def complex_ratio_masks(case, folder):
    limit, steepness = case.config["K"], case.config["C"]
    mask = np.asarray(ratio_mask(case["in/mixture"], case["in/clean"]))
    case.check("crm", mask, case["out/crm"])
    case.check("compressed", compress_mask(mask, limit, steepness), case["out/compressed"])
    case.check("compressed_K1_C1", compress_mask(mask, 1.0, 1.0), case["out/compressed_K1_C1"])
    clipped = compress_mask(np.clip(mask, -60, 60), limit, steepness)
    case.check("compressed_clipped", clipped, case["out/compressed_clipped"])
    # Beyond 40 the inverse magnifies the rounding of float32.
    ours, theirs = np.asarray(expand_mask(clipped, limit, steepness)), case["out/recovered_clipped"]
    fine = np.abs(theirs) <= 40
    case.check("recovered_clipped", ours[fine], theirs[fine], 1e-3)
    recovered = np.asarray(expand_mask(case["in/mask"], limit, steepness))
    case.check("recovered_mask", recovered, case["out/recovered_mask"])
    channels_last = [x.transpose(0, 2, 3, 1) for x in (recovered, case["in/mixture_nchw"])]
    applied = np.transpose(apply_mask(*channels_last), (0, 3, 1, 2))
    case.check("applied", applied, case["out/applied"])


# Losses, scores, rates ------------------------------------------------------------------------------


def loss_values(case, folder):
    for key in case.named("loss"):
        talkers, kind = re.fullmatch(r"p(\d+)_(.+)", key).groups()
        gamma = float(kind.removeprefix("gamma")) if kind.startswith("gamma") else 0.1
        built_for = int(kind.rsplit("_", 1)[1]) if "built_for" in kind else int(talkers)
        estimates, targets = (
            tf.constant(case[f"in/{name}_{talkers}"].transpose(0, 4, 2, 3, 1)) for name in ("estimate", "target")
        )
        with tf.GradientTape() as tape:
            tape.watch(estimates)
            mean = tf.reduce_mean(losses.discriminative_loss(estimates[:, :built_for], targets[:, :built_for], gamma))
        np.testing.assert_allclose(mean, case["loss/" + key], rtol=1e-5, atol=1e-6)
        gradient = tape.gradient(mean, estimates).numpy().transpose(0, 4, 2, 3, 1)
        case.check("grad_" + key, gradient, case["out/grad_" + key])


def schedule(case, folder):
    config = case.config
    rule = rules.CyclicRule(config["base_lr"], config["max_lr"], config["step_size_up"])
    states = [LoopState(step=step) for step in range(1, 1 + len(case["out/lr"]))]
    np.testing.assert_allclose([rule.rate(state) for state in states], case["out/lr"], rtol=1e-9)


def scores(case, folder):
    # The reference sums over the whole batch: the batch as one long example.
    targets, estimates = (
        case[f"in/{name}"].transpose(4, 0, 2, 3, 1).reshape(1, case["in/target"].shape[-1], -1, 1, 2)
        for name in ("target", "estimate")
    )
    each = [losses.spectral_snr(estimates[:, [i]], targets[:, [i]])[0] for i in range(targets.shape[1])]
    np.testing.assert_allclose(each, case["out/snr_per_source"], atol=1e-3)
    np.testing.assert_allclose(losses.spectral_snr(estimates, targets)[0], case["loss/snr_callback"], atol=1e-3)
    assert case.config["bss_filter_taps"] == metrics.SDR_FILTER_SAMPLES
    references, waves = (case[f"in/{name}_waves"] / 32768 for name in ("ref", "est"))
    for name, order in (("direct", slice(None)), ("swapped", slice(None, None, -1))):
        given = waves[order]
        chosen = metrics.best_permutation(given, references)
        np.testing.assert_array_equal(chosen, case[f"out/bss_{name}"][3])
        np.testing.assert_allclose(metrics.sdr(given[chosen], references), case[f"out/bss_{name}"][0], atol=1e-2)
    ours = strict_frontend()
    spectra = [ours.analyse(x, x[:, None])[1] for x in (references, waves)]
    through = [np.asarray(ours.synthesise(x))[:, 0, : references.shape[1]] for x in spectra]
    np.testing.assert_allclose(metrics.sdr(through[1], through[0]), case["out/sdr_of_spectrograms"], atol=5e-2)


# Filters --------------------------------------------------------------------------------------------


def band_pass(case, folder):
    low, high = case.config["wn"]
    rate = 16000
    sections = postprocess.band_sections(rate, low * rate / 2, high * rate / 2, case.config["order"])
    np.testing.assert_allclose(sections, case["out/sos"], rtol=1e-9, atol=1e-12)
    filtered = postprocess.filter_audio(case["in/wave"], rate, order=case.config["order"], parity=True)
    case.check("filtered", filtered[:: -(-len(filtered) // len(case["out/filtered"]))], case["out/filtered"])


def shelves(case, folder):
    config = case.config
    rate, gain, slope = config["sample_rate"], config["gain"], config["slope"]
    for name, sign in (("low", 1), ("high", -1)):
        filters = postprocess.shelf_filter(sign * gain, config[name], slope, rate, name == "high")
        for part, ours in zip("ba", filters):
            np.testing.assert_allclose(ours, case[f"out/{name}_{part}"], rtol=1e-9)
    ours = postprocess.shelf(case["in/wave"], rate, gain, config["low"], config["high"], slope)
    case.check("shelved", ours, case["out/shelved"])


PROCEDURES = {
    ("looking_to_listen", "model"): model_case,
    ("looking_to_listen", "train_mode_model"): train_case,
    ("looking_to_listen", "frontend"): frontend,
    ("looking_to_listen", "frontend_inverse"): frontend_inverse,
    ("looking_to_listen", "frontend_asteroid"): frontend_asteroid,
    ("looking_to_listen", "crm"): complex_ratio_masks,
    ("looking_to_listen", "losses"): loss_values,
    ("looking_to_listen", "schedule"): schedule,
    ("looking_to_listen", "metrics"): scores,
    ("looking_to_listen", "postprocess"): band_pass,
    ("looking_to_listen", "shelf"): shelves,
}
