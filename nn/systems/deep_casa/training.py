"""What the two stages of Deep CASA share: flags, utterances, models from flags or checkpoints, outputs."""

from absl import flags

from feat.base.files import UserError
from feat.batches import common, deep_casa
from feat.corpora.features import define_feature_flags, read_mixture, settings_from_flags
from feat.corpora.lists import names_path, read_names
from feat.signals.stft import num_frames
from models.deep_casa.dense_unet import DenseUNet
from models.deep_casa.grouping import SequentialGrouping
from nn.checkpoints import ours as checkpoint
from nn.checkpoints import readers
from nn.recordings.journal import Journal
from nn.recordings.outputs import OutputFolder
from nn.systems.deep_casa import pictures
from nn.training import flags as training_flags
from nn.training import loop
from nn.training.optimizers import make_optimizer
from nn.training.task import DrawnData, Task, seed_everything

FLAGS = flags.FLAGS

# Constructor arguments that flags of the original's names set.
DENSE_UNET_FLAGS = dict(talkers="talkers", channels="n_channels", scales="n_layers", causal="causal")
GROUPING_FLAGS = dict(
    talkers="talkers",
    blocks="n_tcn_block",
    dilations="n_dilation_each_block",
    units="n_dilated_units",
    bottleneck="n_bottle",
    embedding_dim="embedding_dim",
    causal="causal",
    scales="n_layers",
)


def define_flags(**training_defaults):
    """Flags of both stages."""
    define_feature_flags()
    training_flags.define_training_flags(**training_defaults)
    flags.DEFINE_integer("n_channels", 64, "feature maps of the Dense-UNet", lower_bound=1)
    flags.DEFINE_integer("n_layers", 4, "depth of the Dense-UNet", lower_bound=1)
    flags.DEFINE_bool("causal", False, "nothing of the future is used")
    flags.DEFINE_bool("parity", False, "compute what the original computes, its quirks included")
    flags.DEFINE_bool("on_the_fly", False, "features from the wavs, without any file of features")
    flags.DEFINE_bool("dynamic_mixing", False, "mix the utterances of the tr list anew at every step; reads the wavs")
    flags.DEFINE_float("segment_seconds", 0.0, "train on pieces of so many seconds; 0: whole utterances", lower_bound=0)


def define_grouping_flags():
    """Sizes of the second stage."""
    flags.DEFINE_integer("n_tcn_block", 4, "series of dilated blocks", lower_bound=1)
    flags.DEFINE_integer("n_dilation_each_block", 7, "dilated blocks in a series", lower_bound=1)
    flags.DEFINE_integer("n_dilated_units", 512, "channels of a dilated block", lower_bound=1)
    flags.DEFINE_integer("n_bottle", 256, "channels between dilated blocks", lower_bound=1)
    flags.DEFINE_integer("embedding_dim", 40, "size of an embedding", lower_bound=1)


def read_list(set_name):
    """Names of the mixtures of a set."""
    return read_names(FLAGS.wav_list_folder, set_name, FLAGS.talkers)


def model_settings(flag_names, resume_model="", **more):
    """Constructor arguments of a model: those in the checkpoint's config.json, or else the flags.

    Raises:
        UserError: a flag that was given disagrees with config.json, or the sample rate or STFT do.
    """
    settings = {argument: FLAGS[flag].value for argument, flag in flag_names.items()}
    settings |= {"bins": settings_from_flags().bins} | more
    config = checkpoint.read_config(resume_model) if resume_model else None
    if not config:
        return settings
    _require_fitting(resume_model, config)
    stored = config["model"]
    for argument, flag in flag_names.items():
        if argument in stored and FLAGS[flag].present and FLAGS[flag].value != stored[argument]:
            raise UserError(
                f"{checkpoint.resolve(resume_model)}: trained with --{flag} {stored[argument]},"
                f" but --{flag} {FLAGS[flag].value} was given; leave it out or give another checkpoint"
            )
    return settings | {k: v for k, v in stored.items() if k in settings}


def _require_fitting(prefix, config):
    """Raises UserError unless a checkpoint takes the features, and as many talkers, as the lists of the flags have."""
    stored = {"talkers": config["model"].get("talkers", FLAGS.talkers)} | config
    for name, value in ({"talkers": FLAGS.talkers} | config_of_flags()).items():
        if stored.get(name, value) != value:
            raise UserError(
                f"{checkpoint.resolve(prefix)}: trained with --{name} {stored[name]}, but --{name} is {value};"
                " give the same"
            )


def config_of_flags():
    """What config.json says besides the model: enough to turn a recording into features."""
    return {name: FLAGS[name].value for name in ("sample_rate", "fft_size", "hop_size")}


def make_dense_unet(resume_model="", keep_prob=None):
    """Dense-UNet of the flags, or of the checkpoint it will be loaded from."""
    more = {} if keep_prob is None else {"dropout": 1.0 - keep_prob}
    return DenseUNet(**model_settings(DENSE_UNET_FLAGS, resume_model, **more), seed=FLAGS.seed)


def make_grouping(resume_model="", tap_keep=None):
    """TCN of the flags, or of the checkpoint it will be loaded from."""
    more = {} if tap_keep is None else {"tap_keep": tap_keep}
    return SequentialGrouping(**model_settings(GROUPING_FLAGS, resume_model, **more), seed=FLAGS.seed)


def load_dense_unet(prefix):
    """A trained first stage, not to be trained further. Its own config.json says its sizes, else the flags do."""
    checkpoint.require(prefix)
    config = checkpoint.read_config(prefix)
    if config is None:
        model = make_dense_unet()
    else:
        checkpoint.require_system(prefix, config["system"], "dense_unet")
        _require_fitting(prefix, config)
        model = DenseUNet(**config["model"])
    readers.load_for_inference(prefix, "dense_unet", model)
    model.trainable = False
    return model


def utterances_of_flags(set_name, with_estimates=False):
    """The utterances of a set, from the cache or, with --on_the_fly, the wavs. Raises UserError."""
    settings = settings_from_flags()
    names = read_list(set_name)
    if FLAGS.on_the_fly:
        return deep_casa.wav_utterances(settings, set_name, names)
    return deep_casa.cached_utterances(settings, set_name, names, with_estimates)


class TrainingData(DrawnData):
    """The training and validation batches that the flags describe.

    Args:
        with_estimates: the estimates of the first stage are needed from its files.
        segment_frames: train on consecutive segments, as the causal first stage does; 0: utterances.
    """

    def __init__(self, with_estimates=False, segment_frames=0):
        self.settings, self.batch_size = settings_from_flags(), FLAGS.batch_size
        self.segment_frames = segment_frames
        if FLAGS.segment_seconds and not self.cut_frames:
            raise UserError(
                f"--segment_seconds {FLAGS.segment_seconds}: shorter than a frame step of"
                f" {self.settings.hop_size} samples; lengthen it"
            )
        if FLAGS.dynamic_mixing:
            if not FLAGS.segment_seconds:
                raise UserError("--dynamic_mixing needs --segment_seconds, the length of the mixtures to make")
            names = read_list("tr")
            self.pool = deep_casa.source_pool(self.settings, "tr", names, FLAGS.wav_list_folder)
            self.examples = len(names)
        else:
            self.training = utterances_of_flags("tr", with_estimates)
            self.examples = (
                deep_casa.segment_count(self.training, segment_frames) if segment_frames else len(self.training)
            )
        self.validation = utterances_of_flags("cv", with_estimates)
        if FLAGS.cv_utterances:
            self.validation = self.validation.first(FLAGS.cv_utterances)

    @property
    def cut_frames(self):
        """Frames of --segment_seconds."""
        return int(FLAGS.segment_seconds * self.settings.sample_rate) // self.settings.hop_size

    @property
    def fixed_lengths(self):
        """Whether all training batches have one length."""
        return bool(FLAGS.dynamic_mixing or self.segment_frames)

    def training_batches(self, epoch, skip=0, share=common.Share()):
        """Pieces of the batches of an epoch, the first `skip` left out."""
        options = dict(batch_size=self.batch_size, seed=FLAGS.seed, epoch=epoch, skip=skip, share=share)
        if FLAGS.dynamic_mixing:
            return deep_casa.mixed_batches(
                self.pool, batches=self.examples // self.batch_size, segment_frames=self.cut_frames, **options
            )
        if self.segment_frames:
            return deep_casa.segment_batches(self.training, self.segment_frames, **options)
        return deep_casa.training_batches(self.training, segment_frames=self.cut_frames, **options)

    def drawn_files(self, epoch, count):
        """See train.DrawnData."""
        files, *_ = deep_casa.draw_mixtures(self.pool, count, 1, FLAGS.seed, epoch)
        return self.pool.paths, files

    def validation_batches(self, share=common.Share()):
        """Every validation utterance alone."""
        return deep_casa.evaluation_batches(self.validation, share)


def train_stage(
    strategy, system, make_model, make_objective, make_decoder, data, *, patience, whole=False, config=None, **scoring
):
    """Trains a stage as the flags say.

    Args:
        strategy: tf.distribute strategy.
        system: see nn.training.task.Task.
        make_model: () -> model; called in the scope of the strategy, with everything seeded.
        make_objective: model -> objective.
        make_decoder: objective -> what draws the pictures, see nn.systems.deep_casa.pictures.SeparationPictures.
        data: TrainingData.
        patience: of the original's learning-rate rule, epochs.
        whole: see nn.training.task.Epochs.
        config: what config.json says besides, by the names of flags.
        scoring: score, higher_is_better and worst_score of nn.training.task.Task.
    """
    with strategy.scope():
        seed_everything(FLAGS.seed)
        model = make_model()
        optimizer = make_optimizer(
            training_flags.optimizer_name(),
            FLAGS.learning_rate,
            **({"beta_2": FLAGS.beta_2} if "beta_2" in FLAGS else {}),
        )
        objective = make_objective(model)
    source = names_path(FLAGS.wav_list_folder, "tr", FLAGS.talkers)
    epochs = training_flags.epochs_from_flags(data.examples, whole, source)
    settings = data.settings
    task = Task(
        system=system,
        model=model,
        optimizer=optimizer,
        objective=objective,
        training_batches=data.training_batches,
        validation_batches=data.validation_batches,
        epochs=epochs,
        rule=training_flags.rule_from_flags(epochs, patience),
        seconds_per_frame=settings.hop_size / settings.sample_rate,
        config=config_of_flags() | (config or {}),
        check_inputs=data.check,
        names_of=data.names_of,
        pictures=pictures.SeparationPictures(data.validation.first(FLAGS.pictures), make_decoder(objective)),
        fixed_lengths=data.fixed_lengths,
        resume_goes_on=False,
        **scoring,
    )
    # The original neither validates nor saves after its last epoch.
    loop.train(task, training_flags.options_from_flags(strategy, task, finish=not FLAGS.parity))


def separate_utterances(utterances, folder, sources, separate):
    """Separates a set; the same command goes on where it was killed.

    Args:
        utterances: feat.batches.deep_casa.Utterances.
        folder: of the outputs.
        sources: the checkpoints.
        separate: (batch of one, samples) -> (outputs [talkers, samples], arrays for `<name>_assign.npz`).
    """
    output = OutputFolder(folder, utterances.settings)
    journal = Journal(folder, sources)
    left, bar = journal.left(utterances.names, map(utterances.files, utterances.names), output.has)
    for i, batch in zip(bar, deep_casa.evaluate(utterances.some(left)) if left else ()):
        name = utterances.names[i]
        signals = read_mixture(utterances.settings, utterances.set_name, name)
        frames = num_frames(signals.shape[1], utterances.settings.fft_size, utterances.settings.hop_size)
        if frames != utterances.frames[i]:
            raise UserError(
                f"{utterances.settings.feat_folder}: {name} has {utterances.frames[i]} frames, its wav {frames};"
                " run feat/feat_gen.py again, and nn/simul_group.py --is_deploy 2 after it"
            )
        outputs, arrays = separate(batch, signals.shape[1])
        journal.add(name, output.write(name, signals, outputs, **arrays))
    output.finish([journal.found(name) for name in utterances.names])
    journal.finish()
