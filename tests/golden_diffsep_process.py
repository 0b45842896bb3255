"""Procedures of the golden cases of DiffSep's process: the SDEs, time grids, samplers, losses, training steps."""

import numpy as np
import tensorflow as tf
from golden_case import UPDATE_TOLERANCE, norm_and_head, seeded_weight, summary

from models import sde as processes
from models.diffusion_losses import ScoreMatching
from models.diffusion_sampling import PredictorCorrector, RecordedNoise
from models.losses import permutations
from nn.step import NormHistory, average_decay


def make_process(config):
    """The process of a configuration: of the model, or of a case of its own."""
    known = dict(sources="ndim", d_lambda="d_lambda", sigma_min="sigma_min", sigma_max="sigma_max", avg_len="avg_len")
    settings = {ours: config[theirs] for ours, theirs in known.items() if theirs in config}
    name = config.get("sde") or config["_target_"].rsplit(".", 1)[1]
    parity = {"parity": True} if name == "PriorMixSDE" else {}
    return processes.PROCESSES[name](**settings, **parity)


def sde(case, folder):
    process = make_process(case.config)
    t, xt, v, score, mixture = (case[f"in/{name}"] for name in ("t", "xt", "v", "score", "mix"))
    level = process.level(mixture[:, 0])
    dt = 1.0 / case.config["N"]
    common, apart = process.variances(t)
    own = process.deviations(t)
    change, deviation = process.discretise(xt, t, dt, level)
    back, noise = process.discretise_reverse(xt, t, score, dt, level)
    found = {
        "drift": process.drift(xt),
        "diffusion": process.diffusion(t, level),
        "mean_mix_mat": process.matrix(1.0, process.decay(t)),
        "mean": process.mean(case["in/x0"], t),
        "L": process.matrix(*own),
        "ev1": common,
        "ev2": apart,
        "var": process.variance(t),
        "mult_std": process.multiply_deviation(t, v, level),
        "mult_std_inv": process.divide_deviation(t, v, level),
        "discretize_f": change,
        "discretize_G": deviation,
        "reverse_discretize_f": back,
        "reverse_discretize_G": noise,
        "reverse_sde_drift": process.reverse_drift(xt, t, score, level),
        "reverse_sde_diffusion": process.diffusion(t, level),
        "probflow_drift": process.reverse_drift(xt, t, score, level, flow=True),
    }
    if "in/z_prior" in case:
        found["prior_sample"] = process.prior(mixture[:, 0], case["in/z_prior"], level)
    if "out/sigma_mix" in case:
        found["sigma_mix"] = level
        found["L"] = tf.expand_dims(found["L"], -1) * tf.expand_dims(level, 1)
    assert set(found) == set(case.named("out"))
    for name, theirs in case.named("out").items():
        ours = found[name]
        case.check(name, np.broadcast_to(np.reshape(ours, np.shape(ours)[: theirs.ndim]), theirs.shape), theirs, 1e-5)


def time_grids(case, folder):
    process = processes.MixSDE()
    case.check("varprop_L_max", np.sqrt(process.variance(1.0)), case["out/varprop_L_max"], 1e-6)
    # The reference draws by rejection; what it accepts has the density that ours inverts.
    accepted = case["in/u"] < np.sqrt(process.variance(case["in/t"]))
    np.testing.assert_array_equal(accepted, case["out/varprop_accept"] == 1)
    for name, theirs in case.named("out").items():
        if name.startswith("varprop"):
            continue
        *kind, steps, t_eps = name.split("_")
        schedule = "plain" if kind == ["pc"] else kind[1]
        steps, t_eps = int(steps[1:]), float(t_eps[3:])
        times, lengths = processes.time_grid(steps, t_eps, schedule)
        case.check(name, times, theirs[:steps], 1e-6)
        np.testing.assert_allclose(lengths, 1.0 / steps)
        if schedule != "plain":
            exact = processes.time_grid(steps, t_eps, schedule, exact=True)[1]
            case.check(name + " lengths", times - exact, theirs[1:], 1e-6)


def clip_and_ema(case, folder):
    norms = case["in/grad_norm"]
    for name, theirs in case.named("out").items():
        if name.startswith("auto_threshold_p"):
            history = NormHistory(float(name.removeprefix("auto_threshold_p")))
            case.check(name, [history.limit(tf.constant(norm, tf.float32)) for norm in norms], theirs, 1e-6)
    limit = case.config["max_decay"]
    first = np.arange(1, 1 + len(case["out/ema_decay"]))
    case.check("ema_decay", average_decay(limit, first), case["out/ema_decay"], 1e-6)
    late = case.config["late_updates"]
    case.check("ema_decay_late", average_decay(limit, late), case["out/ema_decay_late"], 1e-6)


PROCEDURES = {
    ("diffsep", "sde"): sde,
    ("diffsep", "time_grids"): time_grids,
    ("diffsep", "clip_and_ema"): clip_and_ema,
}
