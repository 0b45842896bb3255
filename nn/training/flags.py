"""The flags that every training command has, and the options that follow from them."""

import os

from absl import flags

from feat.base.files import UserError
from nn.training import devices, rules
from nn.training.task import Epochs, TrainOptions

FLAGS = flags.FLAGS


def define_training_flags(learning_rate, lr_decay, epoch=200, batch_size=1):
    """Flags of every training script; the defaults are the system's."""
    devices.define_device_flags()
    flags.DEFINE_enum("is_deploy", "0", ["0", "1", "2"], "0 trains, 1 infers, 2 exports for the next stage")
    flags.DEFINE_string("time_stamp", "test", "name of the run: models/<time_stamp>")
    flags.DEFINE_string("resume_model", "", "checkpoint prefix, ours or the original's, to start from or infer with")
    flags.DEFINE_string("load", "", "checkpoint whose weights alone to start from: optimiser and steps start afresh")
    flags.DEFINE_float("learning_rate", learning_rate, "initial or highest learning rate", lower_bound=0.0)
    flags.DEFINE_float("lr_decay", lr_decay, "factor of the original learning-rate rule")
    flags.DEFINE_enum(
        "lr_schedule",
        "original",
        ["original", "cosine", "linear", "onecycle", "plateau"],
        "original: decays when validation stops improving; cosine and linear rise for --warmup_steps, then fall to 0;"
        " onecycle rises for a fifth of the steps, then falls, and turns Adam's beta_1 the other way; plateau: times"
        " --lr_decay at the third epoch in a row without improvement, ends training after six",
    )
    flags.DEFINE_integer("warmup_steps", 100, "steps of the rise", lower_bound=0)
    flags.DEFINE_integer("epoch", epoch, "passes over the training list", lower_bound=1)
    flags.DEFINE_integer("batch_size", batch_size, "global batch, all devices together", lower_bound=1)
    flags.DEFINE_integer("accumulate", 1, "batches whose gradients make one step", lower_bound=1)
    flags.DEFINE_integer("is_adam", 1, "1: Adam, 0: momentum 0.9; see --optimizer")
    flags.DEFINE_enum("optimizer", None, ["adam", "adamw", "momentum"], "overrides --is_adam")
    flags.DEFINE_float("clip_norm", 0.0, "largest global norm of the gradients; 0: no limit", lower_bound=0.0)
    flags.DEFINE_float(
        "ema_decay", 0.0, "of the moving average of the weights, which validation and inference take; 0: none", 0.0, 1.0
    )
    flags.DEFINE_integer(
        "max_bad_steps", 20, "stop after so many steps in a row whose loss or gradient is not finite", lower_bound=1
    )
    flags.DEFINE_integer("seed", 0, "of the weights, the order, the crops, the mixtures and the drop-out")
    flags.DEFINE_integer("cv_utterances", 500, "validate on so many lines of the cv list; 0: all", lower_bound=0)
    flags.DEFINE_integer("log_steps", 50, "steps between two lines of numbers in TensorBoard", lower_bound=1)
    flags.DEFINE_integer("save_steps", 0, "also save every so many steps; 0: at epochs only", lower_bound=0)
    flags.DEFINE_integer("keep_checkpoints", 0, "keep the newest so many, and the best; 0: all", lower_bound=0)
    flags.DEFINE_integer("pictures", 3, "validation mixtures to draw and play in TensorBoard", lower_bound=0)
    flags.DEFINE_bool("weight_histograms", True, "how the weights are distributed, in TensorBoard at every validation")
    flags.DEFINE_bool("dry_run", False, "say what training would cost, from a few steps, and write nothing")
    flags.DEFINE_list("profile_steps", [], "first,last step of a profile for TensorBoard")


def options_from_flags(strategy, task, finish=True):
    """TrainOptions of the flags; finish: validate and save after the last step."""
    try:
        profile = tuple(map(int, FLAGS.profile_steps)) or None
        if profile and not (len(profile) == 2 and 0 < profile[0] <= profile[1]):
            raise ValueError
    except ValueError:
        raise UserError(f"--profile_steps {','.join(FLAGS.profile_steps)}: give first,last, such as 10,15") from None
    return TrainOptions(
        folder=run_folder(),
        exp_name=os.path.basename(os.path.normpath(FLAGS.exp_name)),  # which may be a folder in a folder
        strategy=strategy,
        resume_model=FLAGS.resume_model,
        load=FLAGS.load,
        clip_norm=FLAGS.clip_norm,
        accumulate=FLAGS.accumulate,
        ema_decay=FLAGS.ema_decay,
        scale_loss=FLAGS.precision == "float16",
        jit_compile=devices.jit_compile(task.fixed_lengths),
        max_bad_steps=FLAGS.max_bad_steps,
        log_steps=FLAGS.log_steps,
        save_steps=FLAGS.save_steps,
        keep_checkpoints=FLAGS.keep_checkpoints,
        finish=finish,
        dry_run=FLAGS.dry_run,
        profile_steps=profile,
        weight_histograms=FLAGS.weight_histograms,
    )


def run_folder():
    """exp/<exp_name>/models/<time_stamp>"""
    return os.path.join("exp", FLAGS.exp_name, "models", FLAGS.time_stamp)


def optimizer_name():
    """Of --optimizer and --is_adam."""
    return FLAGS.optimizer or ("adam" if FLAGS.is_adam else "momentum")


def epochs_from_flags(examples, whole=False, source=""):
    """learning_rate.Epochs of the flags, for so many training examples; source: where they come from."""
    return Epochs(examples, FLAGS.batch_size * FLAGS.accumulate, FLAGS.epoch, whole, source)


def rule_from_flags(epochs, patience, higher_is_better=True):
    """The learning-rate rule that the flags ask for.

    Args:
        patience: of the original rule, epochs.
        higher_is_better: of the score.
    """
    if FLAGS.lr_schedule == "onecycle":
        return rules.OneCycleRule(epochs.total, FLAGS.learning_rate)
    if FLAGS.lr_schedule == "plateau":
        return rules.PlateauRule(FLAGS.learning_rate, higher_is_better, FLAGS.lr_decay, steps=epochs.steps, stop=6)
    if FLAGS.lr_schedule == "original":
        return rules.OriginalRule(epochs, FLAGS.learning_rate, FLAGS.lr_decay, patience)
    return rules.AnnealedRule(epochs, FLAGS.learning_rate, FLAGS.lr_schedule, FLAGS.warmup_steps)


def project_flags():
    """[flag] of the project's own that have a value, but for those that say what to do now."""
    return [
        flag
        for module, its_flags in sorted(FLAGS.flags_by_module_dict().items())
        if not module.startswith(("absl.", "tensorflow", "tensorboard"))
        for flag in its_flags
        if flag.value is not None and flag.name not in ("is_deploy", "resume_model", "dry_run")
    ]
