"""Procedures of the golden cases of SpEx+: networks, losses, schedules, training steps, scores."""

import numpy as np
import tensorflow as tf
from golden_case import GRADIENT_TOLERANCE, UPDATE_TOLERANCE, norm_and_head, summary

from models import losses
from models.spex_plus.network import BRANCHES, SpexPlus
from nn.checkpoints import ours as checkpoint
from nn.checkpoints.readers import of_arrays
from nn.scoring import metrics
from nn.systems.spex_plus.training import TargetExtraction
from nn.training import loop, rules
from nn.training.optimizers import make_optimizer
from nn.training.step import TrainStep
from nn.training.task import Epochs, LoopState

# Names of our batches, of either reference.
INPUTS = {
    "mixture": ("audio", "mix"),
    "enrolment": ("ref", "aux"),
    "target": ("target", "ref"),
    "speaker": ("speaker_id", "spk_idx"),
    "enrolment_samples": (None, "aux_len"),
    "samples": (None, "valid_len"),
}


def is_seed(case):
    return case.config["model"] == "seed"


def make_model(case):
    """The model of a case, with its weights sent through the converter; and {our weight: reference name}."""
    weights = case.weights()
    reader = of_arrays(case.meta["case"], weights)
    settings = reader.settings() | {"parity": True, "causal": case.config.get("causal", False)}
    mask = case.config.get("non_linear", "relu")
    settings["mask"] = "batch_softmax" if mask == "softmax" else mask
    model = SpexPlus(**settings)
    checkpoint.restore_weights(reader, "spex_plus", model)
    assert case.meta.get("parameters") in (None, sum(int(np.prod(w.shape)) for w in model.trainable_variables))
    return model, reader.reference_names(model)


def make_batch(case, suffix=""):
    names = {ours: theirs[0 if is_seed(case) else 1] for ours, theirs in INPUTS.items()}
    return {ours: tf.constant(case[f"in/{t}{suffix}"]) for ours, t in names.items() if f"in/{t}{suffix}" in case}


def make_objective(case, model):
    return TargetExtraction(model, "si_sdr" if is_seed(case) else "si_snr")


def reference_layout(array, shape):
    """A weight of ours, or its gradient, as the reference has it."""
    return np.reshape(array, shape[::-1]).T


def check_outputs(case, outputs, prefix="out/", tolerance=1e-4):
    """Estimates and logits; the authors' short estimate is not filled up to the mixture's length."""
    for name in (*BRANCHES, "logits"):
        theirs = case[prefix + name]
        ours = np.asarray(outputs[name])
        assert not np.any(ours[:, theirs.shape[1] :])
        case.check(prefix + name, ours[:, : theirs.shape[1]], theirs, tolerance)


def first_probe_that_differs(case, model, run):
    """Name of the first 1x1 convolution or residual block of ours whose output is off."""
    theirs_of = {
        ours.split("/")[0]: theirs for ours, theirs in of_arrays("", case.weights()).reference_names(model).items()
    }
    outputs = {}
    for layer in [*model.speaker_blocks, *model.blocks, *model.masks, model.speaker_output]:
        layer.call = _watched(layer, outputs)
    run()
    for name, value in outputs.items():
        scope = theirs_of[name].rsplit(".", 1)[0]
        for probe in (scope, scope.rsplit(".", 1)[0], scope.rsplit(".", 2)[0]):
            if list(value.shape)[::2] + [value.shape[1]] == list(case.meta["probes"].get(probe, ())):
                ours, theirs = summary(value.transpose(0, 2, 1)), case["probe/" + probe]
                if np.max(np.abs(ours[:10] - theirs[:10])) > 2e-4 * max(theirs[9], 1e-6):
                    return f"first probe that differs: {probe} (ours {ours}, reference {theirs})"
    return f"none of the probes among {len(outputs)} layers differs"


def _watched(layer, outputs):
    original = layer.call

    def call(*arguments, **options):
        result = original(*arguments, **options)
        outputs[layer.name] = np.asarray(result)
        return result

    return call


def model_case(case, folder):
    model, names = make_model(case)
    batch = make_batch(case)
    try:
        outputs = model(batch, training=False)
        check_outputs(case, outputs)
        case.check("speaker_embedding", outputs["embedding"], case["out/speaker_embedding"])
        if "out/si_sdr_per_item" in case:
            ours = [losses.si_sdr(outputs[branch], batch["target"]) for branch in BRANCHES]
            case.check("si_sdr_per_item", ours, case["out/si_sdr_per_item"])
    except AssertionError as error:
        error.add_note(first_probe_that_differs(case, model, lambda: model(batch, training=False)))
        raise
    if "loss/total" in case:
        check_training_pass(case, model, names, batch)


def check_training_pass(case, model, names, batch):
    """Loss, gradients and moving statistics of one pass in training mode."""
    objective = make_objective(case, model)
    shapes = {row["name"]: tuple(row["shape"]) for row in case.meta["weights"]}
    with tf.GradientTape() as tape:
        loss, found = objective(batch, training=True)
        loss = tf.reduce_mean(loss)
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    case.check("loss", loss, case["loss/total"])
    case.check("loss", tf.reduce_mean(found["cross_entropy"]), case["loss/ce"])
    if "loss/sisdr" in case:
        case.check("loss", tf.reduce_mean(found["extraction_loss"]), case["loss/sisdr"])
    for path, variable in checkpoint.weight_names(model.non_trainable_variables).items():
        theirs = case[f"out/after_train_forward/{names[path]}"]
        case.check("after_train_forward", variable.numpy(), theirs)
    norm = case["loss/grad_norm"]
    tolerance = max(GRADIENT_TOLERANCE, case.tolerance("grad_norm"))
    case.check("grad_norm", tf.linalg.global_norm(gradients), norm, tolerance)
    for variable, gradient in zip(model.trainable_variables, gradients):
        name = names[variable.path.split("/", 1)[1]]
        theirs = case["grad/" + name]
        ours = norm_and_head(reference_layout(gradient.numpy(), shapes[name]))
        # A gradient that is nothing but rounding is measured against the whole (tolerance_grad_norm_rule).
        assert np.max(np.abs(ours - theirs)) <= tolerance * max(theirs[0], 1e-4 * norm), (name, ours, theirs)
    # What the forward pass in training mode gave, once more: the moving statistics play no part in it.
    outputs = model(batch, training=True)
    check_outputs(case, outputs, "out/train_")
    if "out/train_sisnr_short" in case:
        for branch in BRANCHES:
            estimate, target = outputs[branch], batch["target"]
            if "samples" in batch:
                inside = tf.sequence_mask(batch["samples"], tf.shape(target)[1], tf.float32)
                estimate, target = estimate * inside, target * inside
            case.check("sisnr", losses.si_snr(estimate, target), case[f"out/train_sisnr_{branch}"])


def numbers_after(text, word):
    """The number behind a word of a description such as "Adam lr 1e-3"; None if the word is not there."""
    words = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return float(words[words.index(word) + 1]) if word in words else None


def train_steps(case, folder):
    model, names = make_model(case)
    weights = case.weights()
    description = case.config["optimizer"]
    rate = numbers_after(description, "lr")
    optimizer = make_optimizer("adam", rate, l2=numbers_after(description, "weight_decay") or 0.0)
    optimizer.build(model.trainable_variables)
    rule = None
    if "lr_scheduler" in case.config:
        cycle = case.config["lr_scheduler"]
        values = [numbers_after(cycle, word) for word in ("total_steps", "max_lr", "pct_start")]
        rule = rules.OneCycleRule(*values)
    batches = []
    while f"in/speaker_id_{len(batches)}" in case or f"in/spk_idx_{len(batches)}" in case:
        batches.append(make_batch(case, f"_{len(batches)}"))
    examples = batches[0]["mixture"].shape[0]
    step = TrainStep(model, optimizer, make_objective(case, model), tf.distribute.get_strategy(), examples)
    step.compile({key: tf.TensorSpec([None] * len(x.shape), x.dtype) for key, x in batches[0].items()})
    shown = {"loss_total": "loss", "loss": "loss", "loss_sisdr": "extraction_loss", "loss_ce": "cross_entropy"}
    shown |= {"grad_norm": "gradient_norm", "lr": "rate", "beta1": "beta_1"}
    shown = {theirs: ours for theirs, ours in shown.items() if f"out/{theirs}" in case}
    history = []
    for i in range(len(case["out/grad_norm"])):
        state = LoopState(step=i + 1)
        beta_1 = 0.9
        if rule:
            rate, beta_1 = rule.rate(state), rule.beta_1(state)
        optimizer.current_beta_1.assign(beta_1)
        found = step([batches[i % len(batches)]], rate)
        history.append({"rate": rate, "beta_1": beta_1} | {name: float(value) for name, value in found.items()})
    for theirs, ours in shown.items():
        case.check(theirs, [row[ours] for row in history], case["out/" + theirs], UPDATE_TOLERANCE)
    finals = case.named("probe/final")
    for path, variable in checkpoint.weight_names(model.variables).items():
        ours = summary(reference_layout(variable.numpy(), weights[names[path]].shape))
        theirs = finals[names[path]]
        assert np.max(np.abs(ours - theirs)) <= UPDATE_TOLERANCE * max(theirs[-1], 1e-6), (path, ours, theirs)
    tolerance = max(UPDATE_TOLERANCE, case.tolerance("final_outputs"))
    check_outputs(case, model(batches[0], training=False), "out/final_", tolerance)


def schedules(case, folder):
    for key in case.named("in"):
        if key.startswith("onecycle_"):
            name = key.removesuffix("_steps").removeprefix("onecycle_")
            steps = case["in/" + key]
            rule = rules.OneCycleRule(int(steps[-1]) + 1, 1e-3)
            states = [LoopState(step=int(k) + 1) for k in steps]
            rates, betas = [rule.rate(s) for s in states], [rule.beta_1(s) for s in states]
            np.testing.assert_allclose(rates, case[f"out/onecycle_{name}_lr"], rtol=1e-9)
            np.testing.assert_allclose(betas, case[f"out/onecycle_{name}_beta1"], rtol=1e-9)
    validations = [float(case["in/plateau_initial"]), *case["in/plateau_losses"]]
    rates = []
    state = LoopState(rate=1e-3)
    scores = iter(validations)
    loop.run_epochs(
        Epochs(1, 1, len(validations) - 1, whole=True),
        rules.PlateauRule(1e-3, stop=0),
        state,
        train_step=lambda step, rate: rates.append(rate),
        validate=lambda step: next(scores),
        save=lambda state, best: None,
        higher_is_better=False,
    )
    # The rate after an epoch is that of the next; the last falls due when a next one is asked for.
    np.testing.assert_allclose(rates[1:], case["out/plateau_lr"][:-1], rtol=1e-12)
    assert rates[0] == 1e-3


def loss_functions(case, folder):
    target, labels = tf.constant(case["in/target"]), tf.constant(case["in/speaker_id"])
    logits = tf.constant(case["in/logits"])
    estimates = [tf.constant(case[f"in/pred_{branch}"]) for branch in BRANCHES]
    config = case.config
    inside = tf.sequence_mask(case["in/valid_len"], target.shape[1], tf.float32)

    def total(ratio, mask):
        with tf.GradientTape() as tape:
            tape.watch([*estimates, logits])
            cut = [estimate * mask for estimate in estimates]
            extraction = losses.extraction_loss(cut, target * mask, ratio, config["alpha"], config["beta"])
            classification = losses.cross_entropy(logits, labels)
            loss = tf.reduce_mean(extraction + config["lambda"] * classification)
        return (
            loss,
            tf.reduce_mean(extraction),
            tf.reduce_mean(classification),
            tape.gradient(loss, [*estimates, logits]),
        )

    loss, extraction, classification, gradients = total(losses.si_sdr, 1.0)
    for name, value in (("total", loss), ("sisdr", extraction), ("ce", classification)):
        case.check(name, value, case[f"loss/seed_{name}"])
    for branch, gradient in zip(BRANCHES, gradients):
        case.check("grad", gradient, case[f"out/seed_pred_grad_{branch}"])
    case.check("grad", gradients[3], case["out/seed_logits_grad"])
    loss, _, _, gradients = total(losses.si_snr, inside)
    case.check("total", loss, case["loss/authors_total"])
    for branch, gradient in zip(BRANCHES, gradients):
        case.check("grad", gradient, case[f"out/authors_pred_grad_{branch}"])
    seed = np.stack([losses.si_sdr(estimate, target) for estimate in estimates])
    case.check("si_sdr", seed, case["out/seed_si_sdr"])
    case.check("metric", seed.mean(axis=1), case["out/seed_metric_batch_values"])
    case.check("metric", seed.mean(), case["out/seed_metric_running_mean"])
    case.check("si_snr", [losses.si_snr(estimate, target) for estimate in estimates], case["out/authors_sisnr"])
    masked = [losses.si_snr(estimate * inside, target * inside) for estimate in estimates]
    case.check("si_snr", masked, case["out/authors_sisnr_masked"])
    edges = tf.constant(case["in/edge_pred"]), tf.constant(case["in/edge_target"])
    for ratio, name in ((losses.si_sdr, "seed_edge_si_sdr"), (losses.si_snr, "authors_edge_sisnr")):
        ours, theirs = ratio(*edges).numpy(), case[f"out/{name}"]
        # Perfect estimates leave a residual of rounding, of which nothing but its size can be said.
        perfect = theirs > 60
        case.check("edges", ours[~perfect], theirs[~perfect])
        np.testing.assert_allclose(ours[perfect], theirs[perfect], atol=20)
    references = case["in/target"]
    for name, zero_mean in (("authors_numpy_si_snr", True), ("authors_numpy_si_snr_keep_dc", False)):
        scores = [metrics.si_sdr(case[f"in/pred_{branch}"], references, zero_mean) for branch in BRANCHES]
        case.check(name, scores, case["out/" + name], 1e-6)
    swapped = np.stack([case["in/pred_middle"][1], case["in/pred_short"][0]])
    order = metrics.best_permutation(swapped, references[:2])
    best = metrics.si_sdr(swapped[order], references[:2]).mean()
    case.check("permute", best, case["out/authors_permute_si_snr"], 1e-6)


def pesq(case, folder):
    for mode, rate in (("wb", 16000), ("nb", 8000)):
        if f"in/pred_{mode}_int16" in case:
            estimates, references = (case[f"in/{kind}_{mode}_int16"] / 32768 for kind in ("pred", "target"))
            scores = metrics.pesq(estimates, references, rate)
            case.check(f"pesq_{mode}", scores, case[f"out/pesq_{mode}"])
            case.check(f"pesq_{mode}_mean", scores.mean(), case[f"out/pesq_{mode}_mean"])
            ratios = metrics.si_sdr(estimates, references, zero_mean=False)
            case.check(f"si_sdr_{mode}", ratios, case[f"out/si_sdr_{mode}"])


PROCEDURES = {
    ("spex_plus", "model"): model_case,
    ("spex_plus", "train_steps"): train_steps,
    ("spex_plus", "schedules"): schedules,
    ("spex_plus", "metrics"): loss_functions,
    ("spex_plus", "pesq"): pesq,
}
