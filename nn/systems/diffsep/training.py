"""Trains DiffSep: flags, presets, objective and data."""

import dataclasses
import os
import types

import numpy as np
import tensorflow as tf
from absl import flags

from feat.base.files import UserError
from feat.batches import common, diffsep
from feat.corpora.binaural_sets import divide_talkers
from feat.corpora.find import ascending, find_noise
from feat.corpora.talkers import TABLES, find_genders, read_genders
from feat.signals.noises import write_recordings
from models import losses
from models.diffsep import ncsnpp
from models.diffsep.cdiffuse import STEPS, CDiffuse
from models.diffsep.losses import ORDERS, WEIGHTS, ScoreMatching
from models.diffsep.ncsnpp import ScoreModel
from models.diffsep.sampling import PREDICTS, file_key, score_of
from models.diffsep.sde import PROCESSES, TIME_SAMPLING, normalise
from nn.checkpoints import ours as checkpoint
from nn.checkpoints import readers
from nn.scoring import metrics
from nn.systems.diffsep.flags import define_data_flags, define_sampling_flags, sampling_of_flags
from nn.systems.diffsep.recordings import PROCESS, Reverse, Sampling, make_process
from nn.training import devices, loop, rules
from nn.training import flags as training_flags
from nn.training import pictures as summaries
from nn.training.optimizers import make_optimizer
from nn.training.task import DrawnData, Epochs, Task, require_corpus, seed_everything

FLAGS = flags.FLAGS

SYSTEMS = {"ncsnpp": ScoreModel, "cdiffuse": CDiffuse}

# Constructor arguments that flags set, by the names that the reference's configuration has.
SIZE_FLAGS = {
    "ncsnpp": dict(
        sources="n_speakers",
        fft_size="n_fft",
        hop_size="hop_length",
        transform="transform",
        exponent="spec_abs_exponent",
        factor="spec_factor",
        learnable="spec_trans_learnable",
        frame_multiple="frame_multiple",
        masks="masks",
        channels="nf",
        multipliers="ch_mult",
        blocks="num_res_blocks",
        attention="attn_resolutions",
        block="resblock_type",
        wide_shortcut="conv_shortcut",
        progressive="progressive",
        progressive_input="progressive_input",
        combine="progressive_combine",
        rescale="skip_rescale",
        nonlinearity="nonlinearity",
        conditional="conditional",
        centred="centered",
        divide_by_time="scale_by_sigma",
        fourier_scale="fourier_scale",
        dropout="dropout",
        init_scale="init_scale",
    ),
    "cdiffuse": dict(
        sources="n_speakers",
        layers="residual_layers",
        channels="residual_channels",
        cycle="dilation_cycle_length",
        steps="embedding_len",
    ),
}
NUMBERS = ("ch_mult", "attn_resolutions", "fir_kernel")  # lists of integers

# Flags' values; those of config/model/default and config/datamodule/default are the flags' defaults.
_REFERENCE = dict(
    ema_decay=0.999, clip_norm=5.0, batch_per_device=True, cv_utterances=0, keep_checkpoints=20, log_steps=10
)
_SMALL = dict(
    init_hack_p=0.8,
    predicts="sources",
    loss_weight="error",
    scale_by_sigma=False,
    masks=True,
    ema_decay=0.0,
    clip_norm=5.0,
    n_fft=254,
    nf=16,
    ch_mult=["1", "1", "2", "2"],
    num_res_blocks=1,
    attn_resolutions=[],
    spec_factor=0.15,
    frame_multiple=8,
    learning_rate=1e-3,
    lr_schedule="cosine",
    batch_size=4,
    accumulate=1,
    segment_seconds=2.0,
    cv_utterances=16,
    val_batch_size=8,
    val_steps=1,
    steps=1,
    solver="first",
    keep_checkpoints=3,
)
PRESETS = {
    "default": _REFERENCE,
    "icassp-separation": _REFERENCE
    | dict(
        nf=128,
        init_hack=5,
        init_hack_p=0.1,
        spec_factor=0.15,
        learning_rate=2e-4,
        batch_size=6,
        val_batch_size=5,
        valid_max_sep_batches=2,
        check_val_every_n_epoch=5,
    ),
    "noise-reduction": _REFERENCE
    | dict(
        task="enhancement",
        sample_rate=16000,
        sde="PriorMixSDE",
        train_source_order="none",
        init_hack=4,
        nf=128,
        spec_factor=0.15,
        val_losses=["si_sdr", "pesq"],
        batch_size=4,
        val_batch_size=8,
        accumulate=4,
        segment_seconds=3.0,
        val_segment_seconds=3.0,
    ),
    "cdiffuse": _REFERENCE | dict(backbone="cdiffuse", batch_size=4, accumulate=8, val_batch_size=4),
    "small": _SMALL | dict(init_hack=5, epoch=6, epoch_mixtures=800),
    "small-enhancement": _SMALL
    | dict(task="enhancement", sde="PriorMixSDE", train_source_order="none", init_hack=4, epoch=5, epoch_mixtures=500),
}


class ScoreTraining:
    """Objective of DiffSep: denoising score matching.

    Args:
        model: ScoreModel or CDiffuse.
        matching: ScoreMatching.
        steps: variable, number of the training step.
        predicts: see models.diffsep.sampling.score_of.
        seed: of times, noise and orders; these depend on it, the step and the example's index alone.
    """

    def __init__(self, model, matching, steps, predicts="score", seed=0):
        self.model = model
        self.matching = matching
        self.steps = steps
        self.predicts = predicts
        self.first_key = int(file_key(seed, 0))

    def __call__(self, batch, training=False):
        """(loss [batch], {}).

        Args:
            batch: "mixture" [batch, samples], "sources" [batch, sources, samples], "index" [batch], and perhaps
                "ordered" [batch], see ScoreMatching. Validation draws the same for an example every time.
        """
        mixture, sources, _ = normalise(batch["mixture"], batch["sources"])
        keys = tf.cast(batch["index"], tf.int32) + self.first_key
        step = tf.cast(self.steps, tf.int32) + 1 if training else 0
        draws = self.matching.draw(keys, step, tf.shape(sources)[2])
        score = score_of(self.model, self.matching.sde, mixture, self.predicts, training)
        return self.matching(score, mixture, sources, draws, batch.get("ordered")), {}


class ValidationSeparation:
    """Separates a few validation mixtures, the same ones with the same noise every time.

    Args:
        reverse: nn.systems.diffsep.recordings.Reverse.
        mixtures: feat.batches.diffsep.MixtureSet of those.
        segment: samples of a piece of each; 0: whole ones.
        scores: of SCORES; si_sdri comes with si_sdr.
        clamp_db, zero_mean: of SI-SDR.
        seed: of the noise.
        pictures: how many to keep for `pictures`.
    """

    def __init__(
        self, reverse, mixtures, segment=0, scores=("si_sdr",), clamp_db=30.0, zero_mean=True, seed=0, pictures=0
    ):
        self.reverse = reverse
        self.mixtures = mixtures
        self.segment = segment
        self.scores = scores
        self.options = dict(clamp_db=clamp_db, zero_mean=zero_mean)
        self.seed = seed
        self.shown = {name: {} for name in mixtures.names[:pictures]}

    def __call__(self):
        """Means over the mixtures; SI-SDR under the order of the sources where it is highest."""
        found = []
        for batch in diffsep.evaluate(self.mixtures, 1, self.segment, self.seed):
            index = int(batch["index"][0])
            mixture, sources, _ = normalise(batch["mixture"], batch["sources"])
            estimates = tf.constant(self.reverse(mixture, [file_key(self.seed, index)]))
            row = {}
            if "si_sdr" in self.scores:
                unprocessed = tf.repeat(mixture[:, None], sources.shape[1], axis=1)
                values = [losses.utterance_pit_si_sdr(x, sources, **self.options)[0] for x in (estimates, unprocessed)]
                row = {"si_sdr": float(values[0]), "si_sdri": float(values[0] - values[1])}
            estimates, sources = estimates[0].numpy(), sources[0].numpy()
            estimates = estimates[metrics.best_permutation(estimates, sources)]
            if "pesq" in self.scores:
                row["pesq"] = metrics.pesq(estimates[:1], sources[:1], self.mixtures.sample_rate)[0]
            found.append(row)
            name = self.mixtures.names[index]
            if name in self.shown:
                self.shown[name] = {"mixture": mixture[0].numpy()}
                for k, pair in enumerate(zip(sources, estimates)):
                    self.shown[name] |= {f"{kind}_{k + 1}": x for kind, x in zip(("source", "estimate"), pair)}
        # PESQ is NaN where it cannot be had.
        return {name: float(np.nanmean([row[name] for row in found])) for name in found[0]} if found else {}

    def pictures(self, folder, step):
        """Writes pictures and audio of the first mixtures, see nn.training.task.Task."""
        summaries.write_signals(self.shown, self.mixtures.sample_rate, "separation", folder, step)


SCORES = ("si_sdr", "pesq")


# From flags ---------------------------------------------------------------------------------------


def define_flags():
    """Flags of the script: the values of the reference's configuration, by its names where they are clear alone."""
    training_flags.define_training_flags(learning_rate=1e-4, lr_decay=0.5, epoch=1000, batch_size=16)
    define_data_flags()
    define_sampling_flags()
    define_process_flags()
    define_model_flags()
    flags.DEFINE_enum("preset", "default", list(PRESETS), "values of all flags that are not given")
    flags.DEFINE_string("exp_name", "diffsep", "name of the experiment: exp/<exp_name>")
    flags.DEFINE_enum("task", "separation", diffsep.TASKS, "of talkers, or of speech and noise")
    flags.DEFINE_float("segment_seconds", 5.0, "train on pieces of so many seconds; 0: whole mixtures", lower_bound=0)
    flags.DEFINE_float("val_segment_seconds", 0.0, "the same for validation", lower_bound=0)
    flags.DEFINE_bool("shuffle_noise", False, "of enhancement, give every speech the noise of another in the batch")
    flags.DEFINE_bool("dynamic_mixing", False, "mix the utterances of --corpus_folder anew at every step")
    flags.DEFINE_string("corpus_folder", "", "a folder for every talker, or tr/ of those; for --dynamic_mixing")
    flags.DEFINE_string("noise_folder", "", "noise of --dynamic_mixing: DEMAND, or any recordings; default: made")
    flags.DEFINE_list("snr_db", ["0", "15"], "of --dynamic_mixing: dB of speech over noise, range")
    flags.DEFINE_integer("epoch_mixtures", 20000, "mixtures in an epoch of --dynamic_mixing", lower_bound=1)
    flags.DEFINE_integer(
        "both_genders_epochs", 0, "the first epochs of --dynamic_mixing have a man and a woman in every mixture, whose"
        " order is given and learnt fast, by the table of the corpus", lower_bound=0,
    )  # fmt: skip
    flags.DEFINE_bool("batch_per_device", False, "--batch_size is that of a device")
    flags.DEFINE_float("t_rev_init", 0.03, "how long before 1 --init_hack 1, 2 and 3 begin", 0.0, 1.0)
    flags.DEFINE_enum("time_sampling_strategy", "uniform", TIME_SAMPLING, "times of training")
    flags.DEFINE_enum(
        "train_source_order", "power", ORDERS, "of the sources, for --init_hack 0 to 4", case_sensitive=False
    )
    flags.DEFINE_integer("init_hack", 0, "how training knows of the mixture; see models/diffsep/losses.py", 0, 7)
    flags.DEFINE_float("init_hack_p", None, "of examples at the mixture, for --init_hack 4 to 7; 1 / --sde_N", 0.0, 1.0)
    flags.DEFINE_float("mmnr_thresh_pit", -10.0, "dB, under which the order of sources is free, for --init_hack 6")
    flags.DEFINE_enum("loss", "mse", ["mse"], "of L S + z")
    flags.DEFINE_enum("loss_weight", "noise", WEIGHTS, "what the loss is a mean of; see models/diffsep/losses.py")
    flags.DEFINE_enum("predicts", "score", PREDICTS, "what the network gives; see models/diffsep/sampling.py")
    flags.DEFINE_float("weight_decay", 0.0, "added to gradients times the weights", lower_bound=0.0)
    flags.DEFINE_integer("lr_warmup", 0, "steps in which a constant rate rises", lower_bound=0)
    flags.DEFINE_float("clip_percentile", 0.0, "limit gradients by this percentile of their norms instead", 0.0, 100.0)
    flags.DEFINE_bool("clip_pieces", True, "limit the sum of gradients after each of --accumulate batches; else once")
    flags.DEFINE_integer("check_val_every_n_epoch", 1, "epochs between validations", lower_bound=1)
    flags.DEFINE_integer("val_batch_size", 16, "mixtures of a validation batch", lower_bound=1)
    flags.DEFINE_integer("valid_max_sep_batches", 1, "of so many batches the mixtures are separated", lower_bound=0)
    flags.DEFINE_list("val_losses", ["si_sdr"], f"scores of validation: {', '.join(SCORES)}")
    flags.DEFINE_enum("main_val_loss", "si_sdr", [*SCORES, "score_loss"], "by which the best checkpoint is chosen")
    flags.DEFINE_float("val_clamp_db", 30.0, "limit of SI-SDR", lower_bound=0)
    flags.DEFINE_bool("val_zero_mean", True, "SI-SDR without means")
    flags.DEFINE_integer("val_steps", None, "N of validation; default: --steps", lower_bound=1)
    flags.DEFINE_string("val_solver", None, "--solver of validation; default: --solver")
    flags.DEFINE_bool("parity", False, "as the reference, quirks included; see the README")


def define_process_flags():
    """The diffusion process."""
    flags.DEFINE_enum("sde", "MixSDE", list(PROCESSES), "process; PriorMixSDE's noise follows the mixture's level")
    flags.DEFINE_float("d_lambda", 2.0, "decay of the differences between sources, gamma", lower_bound=0)
    flags.DEFINE_float("sigma_min", 0.05, "noise at the sources", lower_bound=1e-9)
    flags.DEFINE_float("sigma_max", 0.5, "noise at the mixture", lower_bound=1e-9)
    flags.DEFINE_integer("avg_len", 510, "samples over which PriorMixSDE takes the level", lower_bound=1)
    flags.DEFINE_integer("sde_N", 30, "steps of the process; says how often examples are at the mixture", lower_bound=1)
    flags.DEFINE_float("t_eps", 0.03, "shortest time", lower_bound=1e-6, upper_bound=0.999)


def define_model_flags():
    """Sizes, which the benchmark has too."""
    flags.DEFINE_enum("backbone", "ncsnpp", list(SYSTEMS), "score network")
    flags.DEFINE_integer("n_fft", 510, "samples of a frame", lower_bound=2)
    flags.DEFINE_integer("hop_length", 128, "samples between frames", lower_bound=1)
    flags.DEFINE_bool("center", True, "frames have their centres on the hops; there is no other")
    flags.DEFINE_enum("pad_mode", "constant", ["constant"], "what stands around a signal: silence")
    flags.DEFINE_enum("transform", "exponent", ncsnpp.TRANSFORMS, "of magnitudes")
    flags.DEFINE_float("spec_abs_exponent", 0.5, "of the transform")
    flags.DEFINE_float("spec_factor", 0.33, "of the transform")
    flags.DEFINE_bool("spec_trans_learnable", False, "exponent and factor are trained")
    flags.DEFINE_integer("frame_multiple", 64, "frames are filled up to a multiple; 0: as few as can be", lower_bound=0)
    flags.DEFINE_bool("masks", False, "the network gives factors of mixture and state instead of spectra")
    flags.DEFINE_integer("nf", 64, "channels of the first level", lower_bound=4)
    flags.DEFINE_list("ch_mult", ["1", "1", "2", "2", "2", "2", "2"], "channels of the levels, over --nf")
    flags.DEFINE_integer("num_res_blocks", 2, "blocks of a level", lower_bound=1)
    flags.DEFINE_list("attn_resolutions", ["16"], "attention where the maps have so many rows")
    flags.DEFINE_bool("fir", True, "resampling with --fir_kernel; else means and repetition")
    flags.DEFINE_list("fir_kernel", ["1", "3", "3", "1"], "of the resampling")
    flags.DEFINE_enum("resblock_type", "biggan", ncsnpp.BLOCKS, "blocks", case_sensitive=False)
    flags.DEFINE_bool("conv_shortcut", False, "3x3 convolutions as shortcuts of ddpm")
    flags.DEFINE_enum("progressive", "output_skip", ncsnpp.PROGRESSIVE, "outputs of levels")
    flags.DEFINE_enum("progressive_input", "input_skip", ncsnpp.PROGRESSIVE_INPUT, "inputs of levels")
    flags.DEFINE_enum("progressive_combine", "sum", ncsnpp.COMBINE, "how levels take their inputs")
    flags.DEFINE_bool("skip_rescale", True, "sums with shortcuts are divided by the root of 2")
    flags.DEFINE_enum("nonlinearity", "swish", list(ncsnpp.NONLINEARITIES), "of the blocks")
    flags.DEFINE_bool("conditional", True, "blocks are told the time")
    flags.DEFINE_bool("centered", False, "maps are taken as they are, not as 2 x - 1")
    flags.DEFINE_bool("scale_by_sigma", True, "outputs are divided by the time")
    flags.DEFINE_enum("embedding_type", "fourier", ["fourier"], "of the time")
    flags.DEFINE_float("fourier_scale", 16.0, "deviation of its frequencies", lower_bound=0)
    flags.DEFINE_float("dropout", 0.0, "rate in the blocks", 0.0, 1.0)
    flags.DEFINE_float("init_scale", 0.0, "of the last kernel of every block at first", lower_bound=0)
    flags.DEFINE_integer("residual_layers", 30, "blocks of cdiffuse", lower_bound=1)
    flags.DEFINE_integer("residual_channels", 64, "channels of cdiffuse", lower_bound=1)
    flags.DEFINE_integer("dilation_cycle_length", 10, "blocks of cdiffuse between dilations of 1", lower_bound=1)
    flags.DEFINE_integer("embedding_len", STEPS + 1, "times that cdiffuse knows", lower_bound=STEPS + 1)


def apply_preset():
    """Gives the preset's values to all flags that were not given. Raises UserError for some that do not go together."""
    for name, value in PRESETS[FLAGS.preset].items():
        if not FLAGS[name].present:
            FLAGS[name].value = value
    if FLAGS.task == "enhancement" and FLAGS.n_speakers != 2:
        raise UserError(f"--n_speakers {FLAGS.n_speakers}: speech and noise are 2; leave it out")
    if FLAGS.sigma_min >= FLAGS.sigma_max:
        raise UserError(f"--sigma_min {FLAGS.sigma_min}: should be below --sigma_max {FLAGS.sigma_max}")
    if not FLAGS.center:
        raise UserError("--nocenter: frames always have their centres on the hops; leave it out")
    unknown = set(FLAGS.val_losses) - set(SCORES)
    if unknown:
        raise UserError(f"--val_losses {','.join(FLAGS.val_losses)}: should be some of {', '.join(SCORES)}")
    separates = FLAGS.valid_max_sep_batches > 0
    if FLAGS.main_val_loss != "score_loss" and not (separates and FLAGS.main_val_loss in FLAGS.val_losses):
        raise UserError(
            f"--main_val_loss {FLAGS.main_val_loss}: is not among --val_losses {','.join(FLAGS.val_losses)} of"
            f" {FLAGS.valid_max_sep_batches} batches; name it there, or give --main_val_loss score_loss"
        )


def integers(name):
    """Value of a flag that is a list of integers. Raises UserError."""
    try:
        return [int(text) for text in FLAGS[name].value]
    except ValueError as error:
        raise UserError(f"--{name} {','.join(FLAGS[name].value)}: should be integers, such as 1,2,2") from error


def settings_of_flags():
    """Constructor arguments of the network."""
    known = SIZE_FLAGS[FLAGS.backbone]
    settings = {name: integers(flag) if flag in NUMBERS else FLAGS[flag].value for name, flag in known.items()}
    if FLAGS.backbone == "ncsnpp":
        settings["fir"] = integers("fir_kernel") if FLAGS.fir else None
        settings["frame_multiple"] = FLAGS.frame_multiple or None
    return settings


def model_settings(source=""):
    """The same, or those of a checkpoint if there is one.

    Raises:
        UserError: a flag that was given disagrees with the checkpoint, or the checkpoint is of another network.
    """
    settings = settings_of_flags()
    if not source:
        return settings
    config = checkpoint.read_config(source)
    config = config or {"system": FLAGS.backbone, "model": readers.foreign_settings(source, FLAGS.backbone)[0]}
    stored = config["model"]
    for flag, own in (
        ("backbone", config["system"]),
        ("sample_rate", config.get("sample_rate", FLAGS.sample_rate)),
        ("n_speakers", stored.get("sources", FLAGS.n_speakers)),
        ("predicts", config.get("predicts", PREDICTS[0])),
    ):
        if FLAGS[flag].value != own:
            raise UserError(f"{source}: trained with --{flag} {own}, not {FLAGS[flag].value}; give --{flag} {own}")
    for name, flag in SIZE_FLAGS[FLAGS.backbone].items():
        if FLAGS[flag].present and stored.get(name, settings[name]) != settings[name]:
            raise UserError(
                f"{source}: trained with --{flag} {stored[name]}, but --{flag} {FLAGS[flag].value} was given;"
                " leave it out or give another checkpoint"
            )
    return settings | stored


def make_model(settings):
    """The network of its constructor arguments. Raises UserError for those that make none."""
    try:
        return SYSTEMS[FLAGS.backbone](**settings)
    except ValueError as error:
        raise UserError(f"--backbone {FLAGS.backbone}: {error}") from error


def make_matching(sde):
    """ScoreMatching of the flags. Raises UserError."""
    probability = 1.0 / FLAGS.sde_N if FLAGS.init_hack_p is None else FLAGS.init_hack_p
    try:
        return ScoreMatching(
            sde,
            t_eps=FLAGS.t_eps,
            time_sampling=FLAGS.time_sampling_strategy,
            source_order=FLAGS.train_source_order,
            init_hack=FLAGS.init_hack,
            t_rev_init=FLAGS.t_rev_init,
            probability=probability,
            mmnr_threshold=FLAGS.mmnr_thresh_pit,
            weight=FLAGS.loss_weight,
            parity=FLAGS.parity,
        )
    except ValueError as error:
        raise UserError(f"--init_hack {FLAGS.init_hack}: {error}") from error


class TrainingData(DrawnData):
    """Training and validation batches that the flags describe.

    Attributes:
        examples: in an epoch.
        validation: MixtureSet.
        separated: those of it that are separated, drawn by the seed; in parity the first.
        segment, val_segment: samples of pieces, 0 for whole mixtures.
    """

    def __init__(self, batch_size):
        corpora = diffsep.Corpora(
            FLAGS.task, FLAGS.wsj0_mix, FLAGS.vctk_demand, FLAGS.librimix, FLAGS.n_speakers, FLAGS.sample_rate,
            FLAGS.mode, FLAGS.resample, FLAGS.seed,
        )  # fmt: skip
        self.batch_size = batch_size
        self.segment = round(FLAGS.segment_seconds * FLAGS.sample_rate)
        self.val_segment = round(FLAGS.val_segment_seconds * FLAGS.sample_rate)
        if FLAGS.dynamic_mixing:
            self.pool = self._make_pool()
            self.examples = FLAGS.epoch_mixtures
        else:
            self.training = corpora.open("train")
            self.examples = len(self.training)
        self.validation = corpora.open("val").first(FLAGS.cv_utterances)
        count = min(FLAGS.valid_max_sep_batches * FLAGS.val_batch_size, len(self.validation))
        lines = np.arange(len(self.validation))
        if not FLAGS.parity:
            lines = np.random.default_rng((FLAGS.seed, 35)).permutation(lines)
        self.separated = self.validation.some(sorted(lines[:count]))

    def _make_pool(self):
        require_corpus(self.segment)
        rate, enhancement = FLAGS.sample_rate, FLAGS.task == "enhancement"
        self.snr_db = ascending(FLAGS, "snr_db", 2)
        utterances = divide_talkers(FLAGS.corpus_folder, FLAGS.seed)["tr"]
        noises = ()
        if enhancement and FLAGS.noise_folder:
            noises = find_noise(FLAGS.noise_folder, FLAGS.seed)["tr"]
        elif enhancement:
            speech = [os.path.join(FLAGS.corpus_folder, path) for paths in utterances.values() for path in paths]
            # Where feat/vctk_demand.py has it too; that of the test set is another.
            folder = os.path.join(FLAGS.vctk_demand, "made_noise", "train")
            noises = write_recordings(folder, speech, rate, FLAGS.seed)
        talkers = 1 if enhancement else FLAGS.n_speakers
        genders = self._genders(talkers) if FLAGS.both_genders_epochs else None
        return diffsep.mixing_pool(FLAGS.corpus_folder, utterances, rate, talkers, noises, genders)

    def _genders(self, talkers):
        given = f"--both_genders_epochs {FLAGS.both_genders_epochs}"
        if talkers != 2:
            raise UserError(f"{given}: is for two talkers; leave it at 0")
        table = find_genders(FLAGS.corpus_folder)
        if not table:
            raise UserError(f"{given}: {FLAGS.corpus_folder} has no {' or '.join(TABLES)}; leave it at 0")
        return read_genders(table)

    def training_batches(self, epoch, skip=0, share=common.Share()):
        """Pieces of the batches of an epoch, the first `skip` left out."""
        options = dict(seed=FLAGS.seed, epoch=epoch, skip=skip, share=share)
        if self.pool is not None:
            batches = self.examples // self.batch_size
            return diffsep.mixed_batches(
                self.pool, self.batch_size, batches, self.segment, snr_db=self.snr_db,
                both_genders=self._both_genders(epoch), **options,
            )  # fmt: skip
        return diffsep.training_batches(
            self.training, self.batch_size, segment_samples=self.segment, shuffle_noise=FLAGS.shuffle_noise,
            parity=FLAGS.parity, **options,
        )  # fmt: skip

    def drawn_files(self, epoch, count):
        """See train.DrawnData."""
        both = self._both_genders(epoch)
        files, *_ = diffsep.draw_pieces(self.pool, count, 1, FLAGS.seed, epoch, both_genders=both)
        return self.pool.files.paths, files

    @staticmethod
    def _both_genders(epoch):
        return epoch < FLAGS.both_genders_epochs

    def validation_batches(self, share=common.Share()):
        """Every validation mixture alone."""
        return diffsep.evaluation_batches(
            self.validation, segment_samples=self.val_segment, seed=FLAGS.seed, share=share
        )


# Training -----------------------------------------------------------------------------------------


def train_model():
    """--is_deploy 0"""
    strategy = devices.make_strategy()
    batch_size = FLAGS.batch_size * (strategy.num_replicas_in_sync if FLAGS.batch_per_device else 1)
    data = TrainingData(batch_size)
    with strategy.scope():
        seed_everything(FLAGS.seed)
        model = make_model(model_settings(FLAGS.resume_model or FLAGS.load))
        optimizer = make_optimizer(training_flags.optimizer_name(), FLAGS.learning_rate, l2=FLAGS.weight_decay)
    config = {name: FLAGS[name].value for name in ("sample_rate", "task", "predicts", *PROCESS)}
    sde, t_eps = make_process(config, FLAGS.n_speakers)
    sampling = sampling_of_flags(FLAGS)
    epochs = Epochs(data.examples, batch_size * FLAGS.accumulate, FLAGS.epoch, whole=True)
    better = FLAGS.main_val_loss != "score_loss"
    if FLAGS.lr_schedule == "original":
        rule = rules.ConstantRule(FLAGS.learning_rate, FLAGS.lr_warmup)
    else:
        rule = training_flags.rule_from_flags(epochs, patience=2, higher_is_better=better)
    changes = {"steps": FLAGS.val_steps, "solver": FLAGS.val_solver}
    trained = types.SimpleNamespace(model=model, sde=sde, t_eps=t_eps, config=config | {"sampling": sampling})
    separation = ValidationSeparation(
        Reverse(trained, Sampling(**sampling | {name: value for name, value in changes.items() if value is not None})),
        data.separated,
        data.val_segment,
        FLAGS.val_losses,
        FLAGS.val_clamp_db,
        FLAGS.val_zero_mean,
        FLAGS.seed,
        FLAGS.pictures,
    )
    task = Task(
        system=FLAGS.backbone,
        model=model,
        optimizer=optimizer,
        objective=ScoreTraining(model, make_matching(sde), optimizer.iterations.value, FLAGS.predicts, FLAGS.seed),
        training_batches=data.training_batches,
        validation_batches=data.validation_batches,
        epochs=epochs,
        rule=rule,
        score=FLAGS.main_val_loss if better else "loss",
        higher_is_better=better,
        worst_score=-1000.0 if better else float("inf"),
        seconds_per_frame=1 / FLAGS.sample_rate,
        length_key="samples",
        config=config,
        notes={"sampling": sampling},
        check_inputs=data.check,
        names_of=data.names_of,
        pictures=separation.pictures,
        fixed_lengths=bool(FLAGS.dynamic_mixing),
        evaluate=separation,
        validate_epochs=FLAGS.check_val_every_n_epoch,
    )
    options = dataclasses.replace(
        training_flags.options_from_flags(strategy, task),
        clip_percentile=FLAGS.clip_percentile,
        clip_pieces=FLAGS.clip_pieces,
    )
    loop.train(task, options)
