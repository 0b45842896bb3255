"""What the two stages of Deep CASA share: flags, utterances, models from flags or checkpoints, outputs."""

import os

import numpy as np
from absl import flags

from feat import dataset
from feat.audio import write_pcm16
from feat.feat_gen import define_feature_flags, read_mixture, settings_from_flags
from feat.files import UserError, atomic_path, make_writable_directory
from feat.lists import names_path, read_names
from feat.stft import num_frames
from models.dense_unet import DenseUNet
from models.grouping import SequentialGrouping
from nn import checkpoint, summaries, train
from nn.journal import Journal
from nn.optimizers import make_optimizer

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
    train.define_training_flags(**training_defaults)
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
    checkpoint.load_for_inference(prefix, "dense_unet", model)
    model.trainable = False
    return model


def utterances_of_flags(set_name, with_estimates=False):
    """The utterances of a set, from the cache or, with --on_the_fly, the wavs. Raises UserError."""
    settings = settings_from_flags()
    names = read_list(set_name)
    if FLAGS.on_the_fly:
        return dataset.wav_utterances(settings, set_name, names)
    return dataset.cached_utterances(settings, set_name, names, with_estimates)


class TrainingData(train.DrawnData):
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
            self.pool = dataset.source_pool(self.settings, "tr", names, FLAGS.wav_list_folder)
            self.examples = len(names)
        else:
            self.training = utterances_of_flags("tr", with_estimates)
            self.examples = (
                dataset.segment_count(self.training, segment_frames) if segment_frames else len(self.training)
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

    def training_batches(self, epoch, skip=0, share=dataset.Share()):
        """Pieces of the batches of an epoch, the first `skip` left out."""
        options = dict(batch_size=self.batch_size, seed=FLAGS.seed, epoch=epoch, skip=skip, share=share)
        if FLAGS.dynamic_mixing:
            return dataset.mixed_batches(
                self.pool, batches=self.examples // self.batch_size, segment_frames=self.cut_frames, **options
            )
        if self.segment_frames:
            return dataset.segment_batches(self.training, self.segment_frames, **options)
        return dataset.training_batches(self.training, segment_frames=self.cut_frames, **options)

    def drawn_files(self, epoch, count):
        """See train.DrawnData."""
        files, *_ = dataset.draw_mixtures(self.pool, count, 1, FLAGS.seed, epoch)
        return self.pool.paths, files

    def validation_batches(self, share=dataset.Share()):
        """Every validation utterance alone."""
        return dataset.evaluation_batches(self.validation, share)


def train_stage(
    strategy, system, make_model, make_objective, make_decoder, data, *, patience, whole=False, config=None, **scoring
):
    """Trains a stage as the flags say.

    Args:
        strategy: tf.distribute strategy.
        system: see nn.train.Task.
        make_model: () -> model; called in the scope of the strategy, with everything seeded.
        make_objective: model -> objective.
        make_decoder: objective -> what draws the pictures, see nn.summaries.SeparationPictures.
        data: TrainingData.
        patience: of the original's learning-rate rule, epochs.
        whole: see nn.learning_rate.Epochs.
        config: what config.json says besides, by the names of flags.
        scoring: score, higher_is_better and worst_score of nn.train.Task.
    """
    with strategy.scope():
        train.seed_everything(FLAGS.seed)
        model = make_model()
        optimizer = make_optimizer(
            train.optimizer_name(), FLAGS.learning_rate, **({"beta_2": FLAGS.beta_2} if "beta_2" in FLAGS else {})
        )
        objective = make_objective(model)
    source = names_path(FLAGS.wav_list_folder, "tr", FLAGS.talkers)
    epochs = train.epochs_from_flags(data.examples, whole, source)
    settings = data.settings
    task = train.Task(
        system=system,
        model=model,
        optimizer=optimizer,
        objective=objective,
        training_batches=data.training_batches,
        validation_batches=data.validation_batches,
        epochs=epochs,
        rule=train.rule_from_flags(epochs, patience),
        seconds_per_frame=settings.hop_size / settings.sample_rate,
        config=config_of_flags() | (config or {}),
        check_inputs=data.check,
        names_of=data.names_of,
        pictures=summaries.SeparationPictures(data.validation.first(FLAGS.pictures), make_decoder(objective)),
        fixed_lengths=data.fixed_lengths,
        resume_goes_on=False,
        **scoring,
    )
    # The original neither validates nor saves after its last epoch.
    train.train(task, train.options_from_flags(strategy, task, finish=not FLAGS.parity))


class OutputFolder:
    """Where inference writes: `<name>.bin` in the original's layout, `<name>_s1.wav`, ... beside it.

    A .bin is raw little-endian float32, C order, [3 * talkers, samples]: the references, the outputs, then
    the mixture once for every talker.

    Args:
        folder: is made.
        settings: FeatureSettings.
    """

    def __init__(self, folder, settings):
        self.folder = folder
        self.settings = settings
        make_writable_directory(folder)

    def has(self, name):
        return os.path.exists(os.path.join(self.folder, name + ".bin"))

    def write(self, name, signals, outputs, **arrays):
        """Writes one mixture.

        Args:
            signals: [talkers + 1, samples], references and mixture.
            outputs: [talkers, samples].
            arrays: for `<name>_assign.npz`, if any.

        Returns:
            whether the wavs had to be made quieter.
        """
        path = os.path.join(self.folder, name)
        outputs = np.asarray(outputs, np.float32)
        peak = np.max(np.abs(outputs))
        for i, output in enumerate(outputs):
            # All talkers by one factor, so that their balance is kept.
            write_pcm16(f"{path}_s{i + 1}.wav", output / max(1.0, peak), self.settings.sample_rate)
        if arrays:
            with atomic_path(path + "_assign.npz") as temporary, open(temporary, "wb") as file:
                np.savez(file, **arrays)
        rows = np.concatenate([signals[:-1], outputs, np.repeat(signals[-1:], len(outputs), axis=0)])
        with atomic_path(path + ".bin") as temporary, open(temporary, "wb") as file:
            file.write(rows.astype("<f4").data)
        return bool(peak > 1)

    def finish(self, quieter):
        """Says what was written; `quieter`: what `write` gave for every mixture."""
        print(f"{self.folder}: {len(quieter)} mixtures separated, .bin and .wav")
        if any(quieter):
            print(f"{self.folder}: {sum(quieter)} of them were made quieter in the .wav, not the .bin, to fit 16 bits")


def separate_utterances(utterances, folder, sources, separate):
    """Separates a set; the same command goes on where it was killed.

    Args:
        utterances: feat.dataset.Utterances.
        folder: of the outputs.
        sources: the checkpoints.
        separate: (batch of one, samples) -> (outputs [talkers, samples], arrays for `<name>_assign.npz`).
    """
    output = OutputFolder(folder, utterances.settings)
    journal = Journal(folder, sources)
    left, bar = journal.left(utterances.names, map(utterances.files, utterances.names), output.has)
    for i, batch in zip(bar, dataset.evaluate(utterances.some(left)) if left else ()):
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


def fit_length(signals, samples):
    """Cuts [..., samples'] to `samples`, or fills it with zeros at the end."""
    signals = signals[..., :samples]
    missing = samples - signals.shape[-1]
    return np.pad(signals, [(0, 0)] * (signals.ndim - 1) + [(0, missing)])


def checkpoint_to_use():
    """The checkpoint for inference: --resume_model, or else the best of the run's folder.

    Raises:
        UserError: neither is there.
    """
    if FLAGS.resume_model:
        return FLAGS.resume_model
    best = os.path.join(train.run_folder(), "best")
    if not os.path.exists(best):
        raise UserError(f"{best}: no such checkpoint; train first, or give --resume_model PREFIX")
    return best
