"""Procedures of the golden cases of DiffSep's process: the SDEs, time grids, samplers, losses, training steps."""

import numpy as np
import tensorflow as tf
from golden_case import GRADIENT_TOLERANCE, UPDATE_TOLERANCE, norm_and_head, seeded_weight, summary

from models.diffsep.losses import ScoreMatching
from models.diffsep.ncsnpp import ScoreModel
from models.diffsep.sampling import PredictorCorrector, RecordedNoise, score_of
from models.diffsep.sde import PROCESSES, MixSDE, normalise, time_grid
from models.losses import permutations
from nn.checkpoints import ours as checkpoint
from nn.checkpoints.diffsep import DiffsepReader
from nn.training.optimizers import make_optimizer
from nn.training.step import NormHistory, TrainStep, average_decay


def make_process(config):
    """The process of a configuration: of the model, or of a case of its own."""
    known = dict(sources="ndim", d_lambda="d_lambda", sigma_min="sigma_min", sigma_max="sigma_max", avg_len="avg_len")
    settings = {ours: config[theirs] for ours, theirs in known.items() if theirs in config}
    name = config.get("sde") or config["_target_"].rsplit(".", 1)[1]
    parity = {"parity": True} if name == "PriorMixSDE" else {}
    return PROCESSES[name](**settings, **parity)


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
    process = MixSDE()
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
        times, lengths = time_grid(steps, t_eps, schedule)
        case.check(name, times, theirs[:steps], 1e-6)
        np.testing.assert_allclose(lengths, 1.0 / steps)
        if schedule != "plain":
            exact = time_grid(steps, t_eps, schedule, exact=True)[1]
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


# With a network ------------------------------------------------------------------------------------


def make_score_model(case):
    """The network of a case, its weights sent through the converter, and its reader."""
    reader = DiffsepReader(case.meta["case"], case.weights(), {"model": case.config["model"]})
    model = ScoreModel(**reader.settings())
    checkpoint.restore_weights(reader, "ncsnpp", model)
    return model, reader


class Watched:
    """The score of a mixture, which compares what it is given and gives with the probes of a case."""

    def __init__(self, case, score, names=("score_in", "score_out")):
        self.case, self.score, self.names, self.calls = case, score, names, 0

    def __call__(self, x, t):
        found = self.score(x, t)
        mark = f"#{self.calls}" if self.calls else ""
        self.calls += 1
        for name, ours in zip(self.names, (x, found)):
            check_probe(self.case, name + mark, ours)
        return found


def check_probe(case, name, array):
    """Compares the values and statistics that a probe keeps, against the norm of the array over its size."""
    if f"probe/{name}" in case and tuple(case.meta["probes"][name]) == tuple(np.shape(array)):
        theirs, ours = case["probe/" + name], summary(array)
        size = np.size(array)
        level = theirs[10] / np.sqrt(size)
        error = np.abs(ours - theirs) / np.append(np.full(10, max(np.max(np.abs(theirs[:8])), level)), theirs[10])
        assert error.max() < case.tolerance(name, 1e-3), f"{name}: ours {ours}, reference {theirs}"


def sampler(case, folder):
    config, call = case.config["model"], case.config["sampler_call"]
    model, _ = make_score_model(case)
    mixture, _, (mean, deviation) = normalise(tf.constant(case["in/mix"][:, 0]))
    case.check("mixture", mixture, case["out/mix_normalised"][:, 0], 1e-6)
    case.check("mean", mean, case["out/mean"], 1e-5)
    case.check("deviation", deviation, case["out/std"], 1e-5)
    sampler = PredictorCorrector(
        make_process(config["sde"]),
        steps=call["N"],
        t_eps=config["t_eps"],
        schedule=call.get("schedule") or "plain",
        predictor=call["predictor"],
        corrector=call["corrector"],
        snr=call["snr"],
        corrector_steps=call["corrector_steps"],
        denoise=call["denoise"],
        parity=True,
    )
    size = call.get("minibatch") or len(mixture)
    draws = iter(seeded_weight(**row) for row in case.config["seeded_inputs"])
    estimates, calls = [], []
    for first in range(0, len(mixture), size):
        piece = mixture[first : first + size]
        evaluations = sampler.steps * (1 + sampler.corrector_steps)
        noise = RecordedNoise(np.stack([next(draws) for _ in range(1 + evaluations)]))
        score = score_of(model, sampler.sde, piece)
        if evaluations > 30:  # as users run it
            run = tf.function(lambda: sampler(score, piece, noise, states=True))
            estimate, *ways = run()
        else:
            score = Watched(case, score)
            estimate, *ways = sampler(score, piece, noise, states=True)
            assert score.calls == evaluations
        for name, way in zip(("corrected_x", "corrected_mean"), ways):
            for i, state in enumerate(way):
                check_probe(case, f"{name}_{i}", state)
        estimates.append(estimate)
        calls.append(sampler.evaluations)
    assert calls == np.atleast_1d(case.config["nfe"]).tolist()
    case.check("estimate", np.concatenate(estimates), case["out/estimate"], 1e-3)


def make_loss(config):
    """ScoreMatching of a case, with the reference's slip."""
    order = config["train_source_order"]
    process = make_process(config["sde"])
    return ScoreMatching(
        process,
        t_eps=config["t_eps"],
        time_sampling=config["time_sampling_strategy"],
        source_order=order if order in ("power", "random", "pit") else "none",
        init_hack=int(config["init_hack"]),
        t_rev_init=config["t_rev_init"],
        probability=config.get("init_hack_p", 1.0 / config["sde"]["N"]),
        mmnr_threshold=config["mmnr_thresh_pit"],
        parity=True,
    )


def recorded_draws(loss, draws, batch):
    """What `ScoreMatching.draw` would give, of the reference's draws, which it makes for parts of the batch.

    Args:
        draws: {name without its number: array}.
    """
    n = loss.sde.sources
    draws = dict(draws)
    branch = next((draws.pop(name) for name in list(draws) if "train_step_init" in name), None)
    if branch is None:  # of init_hack 4, made after the noise
        branch = draws.pop("uniform_sample_prior", np.ones(batch, "float32"))
    own = branch < loss.probability if loss.init_hack >= 5 else np.zeros(batch, bool)

    def spread(default, *parts):
        array = np.array(np.broadcast_to(default, (batch, *np.shape(default))))
        for where, values in parts:
            array[where] = values
        return array

    def of_others(name):
        return [(~own, draws[name])] if name in draws else []

    noises = [name for name in draws if name.startswith("normal")]
    samples = draws[noises[0]].shape[-1]
    at_mixture = "normal_compute_score_loss_init_hack_pit"
    noise = [(own if name == at_mixture else ~own, draws[name]) for name in noises]
    order = spread(np.arange(n), *[(where, np.argsort(keys)) for where, keys in of_others("uniform_shuffle_sources")])
    for where, choice in of_others("integer_select_elem_at_random"):
        order[where] = np.take_along_axis(order[where], permutations(n)[choice], axis=1)
    time = spread(np.float32(1.0), *of_others("uniform_sample_time"))
    return {
        "time": tf.constant((time - loss.t_eps) / (1.0 - loss.t_eps), tf.float32),
        "noise": tf.constant(spread(np.zeros((n, samples), "float32"), *noise)),
        "branch": tf.constant(branch),
        "order": tf.constant(order, tf.int32),
    }


def draws_of(case, prefix="in/"):
    """{name without its number: array}, in the order that they were made in."""
    found = {key.removeprefix(prefix): case[key] for key in case.arrays if key.startswith(prefix + "draw")}
    return {name.split("_", 1)[1]: found[name] for name in sorted(found, key=lambda name: int(name.split("_")[0][4:]))}


def loss(case, folder):
    matching = make_loss(case.config["model"])
    model, reader = make_score_model(case)
    mixture, sources, _ = normalise(tf.constant(case["in/mix"][:, 0]), tf.constant(case["in/target"]))
    case.check("mixture", mixture, case["out/mix_normalised"][:, 0], 1e-6)
    case.check("sources", sources, case["out/target_normalised"], 1e-6)
    draws = recorded_draws(matching, draws_of(case), len(mixture))
    with tf.GradientTape() as tape:
        losses = matching(score_of(model, matching.sde, mixture), mixture, sources, draws)
        mean = tf.reduce_mean(losses)
    (name,) = {"loss", "loss_mean"} & set(case.named("loss"))
    case.check(name, mean, case["loss/" + name])
    if "out/loss_vector" in case:  # those with another order first
        case.check("vector", np.sort(losses), np.sort(case["out/loss_vector"]))
    if not case.named("grad"):
        return
    gradients = tape.gradient(mean, [v.value for v in model.trainable_variables])
    case.check("norm", tf.linalg.global_norm(gradients), case["loss/total_grad_norm"], GRADIENT_TOLERANCE)
    names = reader.reference_names(model)
    least = GRADIENT_TOLERANCE
    for variable, gradient in zip(model.trainable_variables, gradients):
        theirs = names[variable.path.split("/", 1)[1]]
        if theirs.endswith("NIN_1.b"):  # zero but for rounding
            continue
        case.check("grad/" + theirs, norm_and_head(in_their_layout(theirs, gradient)), case["grad/" + theirs], least)


def in_their_layout(name, array):
    """Undoes nn.checkpoints.diffsep.in_our_layout."""
    array = np.asarray(array)
    if ".NIN_" in name:
        return array
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    # 1x1 convolutions are matrices here; what matters is the order of the values.
    return array.T


def train_steps(case, folder):
    config, accumulate = case.config["model"], case.config["accumulate"]
    matching = make_loss(config)
    model, reader = make_score_model(case)
    optimizer = make_optimizer("adam", config["optimizer"]["lr"])
    optimizer.build(model.trainable_variables)

    def objective(batch, training):
        mixture, sources, _ = normalise(batch["mixture"], batch["sources"])
        return matching(score_of(model, matching.sde, mixture, training=training), mixture, sources, batch["draws"]), {}

    pieces = [
        {
            "mixture": tf.constant(case[f"in/mix_{i}_{k}"][:, 0]),
            "sources": tf.constant(case[f"in/target_{i}_{k}"]),
            "draws": recorded_draws(matching, draws_of(case, f"in/step{i}_micro{k}/"), len(case[f"in/mix_{i}_{k}"])),
        }
        for i in range(case.config["steps"])
        for k in range(accumulate)
    ]
    step = TrainStep(
        model,
        optimizer,
        objective,
        tf.distribute.get_strategy(),
        accumulate * len(pieces[0]["mixture"]),
        clip_norm=config["grad_clipper"]["max_norm"],
        clip_pieces=True,
        accumulate=accumulate,
        ema_decay=config["ema_decay"],
    )
    step.compile(tf.nest.map_structure(tf.TensorSpec.from_tensor, pieces[0]))
    found = [
        step(pieces[first : first + accumulate], config["optimizer"]["lr"])
        for first in range(0, len(pieces), accumulate)
    ]
    for ours, theirs in dict(loss="loss", gradient_norm="grad_norm_before_clipping").items():
        theirs = np.mean(np.reshape(case["out/" + theirs], (-1, accumulate)), axis=1)
        case.check(ours, [row[ours] for row in found], theirs, UPDATE_TOLERANCE)
    names = reader.reference_names(model)
    averages = dict(zip((weight.path for weight in model.trainable_variables), step.averages))
    for variable in model.variables:
        name = names[variable.path.split("/", 1)[1]]
        if name.endswith("NIN_1.b"):  # moved by the signs of rounding errors
            continue
        for group, value in (("after", variable), ("ema", averages.get(variable.path, variable))):
            ours, theirs = norm_and_head(in_their_layout(name, value)), case[f"out/{group}/{name}"]
            case.check(f"{group}/{name}", ours, theirs, UPDATE_TOLERANCE)


PROCEDURES = {
    ("diffsep", "sde"): sde,
    ("diffsep", "time_grids"): time_grids,
    ("diffsep", "clip_and_ema"): clip_and_ema,
    ("diffsep", "sampler"): sampler,
    ("diffsep", "loss"): loss,
    ("diffsep", "train_steps"): train_steps,
}
