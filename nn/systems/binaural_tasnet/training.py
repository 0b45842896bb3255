"""Trains Binaural TasNet and separates its test set: flags, objective, data, training and inference."""

import os

import numpy as np
import tensorflow as tf
from absl import flags
from keras import ops

from feat.base.files import UserError, make_writable_directory, write_text
from feat.base.graph import compiled
from feat.batches import binaural_tasnet, common
from feat.batches.augment import Augmentation, speed_samples
from feat.corpora.binaural_sets import set_folder, training_talkers
from feat.corpora.find import ascending, find_noise
from feat.corpora.lists import rate_folder
from feat.signals import binaural
from feat.signals.audio import read_stereo, resample, wav_info, write_pcm16
from feat.signals.hrir import find_heads, split_heads
from feat.signals.noises import write_recordings
from feat.signals.rooms import draw_rooms
from models import losses
from models.binaural_tasnet.network import FEATURES, MASKS, PROJECTIONS, WIRINGS, MimoTasnet
from models.layers.conv_tasnet import NORMS
from nn.checkpoints import ours as checkpoint
from nn.checkpoints import readers
from nn.recordings.journal import Journal
from nn.recordings.outputs import checkpoint_to_use
from nn.scoring import spatial_metrics
from nn.systems.binaural_tasnet import pictures
from nn.systems.binaural_tasnet.recordings import reference_settings
from nn.training import devices, loop, rules
from nn.training import flags as training_flags
from nn.training.optimizers import make_optimizer
from nn.training.task import DrawnData, Task, require_corpus, seed_everything

FLAGS = flags.FLAGS

# The published configurations: wiring, and kind of mixtures where that is not the number of talkers.
VARIANTS = {wiring: (wiring, "") for wiring in WIRINGS} | {
    "parallel-noise": ("parallel", "noise"),
    "parallel-reverb": ("parallel", "reverb"),
}

# Values of the flags of every system that were not given.
DEFAULTS = dict(clip_norm=5.0, cv_utterances=0)

# Constructor arguments that flags set.
SIZE_FLAGS = dict(
    talkers="talkers",
    filters="n_filters",
    window="window",
    bottleneck="n_bottle",
    units="n_units",
    dilations="n_blocks",
    repeats="n_repeats",
    norm="norm",
    causal="causal",
    mask="mask",
    features="features",
    projection="projection",
)


class BinauralSeparation:
    """Objective of Binaural TasNet: negative SNR at both ears, under the best permutation of the talkers.

    Args:
        model: MimoTasnet.
        whole: in training, mixtures of a batch hold no padding, or it counts, so that "samples" is not looked at.
        whole_validation: the same of validation, whose mixtures come one by one, but on every device.
    """

    def __init__(self, model, whole=False, whole_validation=True):
        self.model = model
        self.whole = whole
        self.whole_validation = whole_validation

    def __call__(self, batch, training=False):
        """(loss [batch], metrics), all of them [batch], dB.

        Args:
            batch: "mixture" [batch, samples, 2], "sources" [batch, talkers, samples, 2]. With "samples" [batch] what
                is behind them does not count.
        """
        whole = self.whole if training else self.whole_validation
        samples = None if whole else batch.get("samples")
        estimates = self.model(batch["mixture"], samples=samples, training=training)
        # Data sets do not say how many talkers there are before they are read.
        sources = ops.reshape(batch["sources"], ops.shape(estimates))
        snr = losses.binaural_pit_snr(estimates, sources, samples)
        return -snr, {"snr": snr}


# From flags ---------------------------------------------------------------------------------------


def define_flags():
    """Flags of the script."""
    training_flags.define_training_flags(learning_rate=1.5e-4, lr_decay=0.5)
    define_model_flags()
    flags.DEFINE_string("exp_name", "binaural_tasnet", "name of the experiment: exp/<exp_name>")
    flags.DEFINE_string(
        "data_folder", "binaural", "what feat/binaural_mix.py writes, or a folder with tr/, cv/ and tt/"
    )
    flags.DEFINE_string("mode", "min", "length rule of the mixtures: min or max")
    flags.DEFINE_integer("sample_rate", 8000, "Hz, of the mixtures", lower_bound=1)
    flags.DEFINE_float("segment_seconds", 0.0, "train on pieces of so many seconds; 0: whole mixtures", lower_bound=0)
    flags.DEFINE_bool("speed_perturb", True, "every source at 95, 100 or 105 % of its speed, and mixed anew")
    flags.DEFINE_bool("rand_shift", False, "every source moved by up to a second, around its ends, and mixed anew")
    flags.DEFINE_bool("wavedrop", False, "silences pieces of training mixtures, and takes narrow bands out of them")
    flags.DEFINE_bool("dynamic_mixing", False, "place and mix the utterances of --corpus_folder anew at every step")
    flags.DEFINE_string("corpus_folder", "", "a folder for every talker, or tr/ of those; for --dynamic_mixing")
    flags.DEFINE_string("hrir", None, "listeners of --dynamic_mixing: CIPIC's wav edition, SOFA; default: spheres")
    flags.DEFINE_string("noise_folder", "", "noise of --dynamic_mixing: DEMAND, or any recordings; default: made")
    flags.DEFINE_list("snr_db", ["-2.5", "15"], "of --dynamic_mixing: dB of the first talker over the noise, range")
    flags.DEFINE_integer("rooms", 4, "simulated rooms of --dynamic_mixing for each reverberation time", lower_bound=1)
    flags.DEFINE_integer("epoch_mixtures", 20000, "mixtures in an epoch of --dynamic_mixing", lower_bound=1)
    flags.DEFINE_enum("filterbank", "random", ["random", "fourier"], "what encoders and decoders are before training")
    flags.DEFINE_bool("threshold_byloss", True, "training mixtures that are separated well enough do not count")
    flags.DEFINE_float("threshold", -30.0, "well enough: the loss, negative dB, is no higher")
    flags.DEFINE_float("loss_upper_lim", 999999.0, "a step with such a loss is skipped")
    flags.DEFINE_integer("lr_hold", 85, "epochs in which --lr_schedule original keeps the rate", lower_bound=0)
    flags.DEFINE_bool("parity", False, "as the reference, quirks included; see the README")
    flags.DEFINE_string("set", "tt", "set that --is_deploy 1 separates")
    flags.DEFINE_integer("save_audio", 10, "mixtures of it whose talkers are saved as wavs; -1: all", lower_bound=-1)
    flags.DEFINE_string("mixture", "", "separate this recording alone")
    flags.DEFINE_string("output_folder", "", "takes its talkers")


def define_model_flags():
    """Sizes, which the benchmark has too."""
    flags.DEFINE_enum("variant", "parallel", list(VARIANTS), "network and kind of mixtures")
    flags.DEFINE_integer("talkers", 2, "in every mixture", lower_bound=1)
    flags.DEFINE_integer("n_filters", 64, "of each encoder", lower_bound=1)
    flags.DEFINE_integer("window", 16, "samples of a frame, an even number; the hop is half of it", lower_bound=2)
    flags.DEFINE_integer("n_bottle", 64, "channels between dilated blocks", lower_bound=1)
    flags.DEFINE_integer("n_units", 128, "channels of a dilated block", lower_bound=1)
    flags.DEFINE_integer("n_blocks", 8, "dilated blocks in a series", lower_bound=1)
    flags.DEFINE_integer("n_repeats", 4, "series of dilated blocks", lower_bound=1)
    flags.DEFINE_enum("norm", None, list(NORMS), "of the dilated blocks; default: global, channel where causal")
    flags.DEFINE_bool("causal", False, "nothing of the future is used, but for the frame of --window")
    flags.DEFINE_enum("mask", "relu", list(MASKS), "what makes masks")
    flags.DEFINE_list("features", ["ild"], f"what separators of cross see of the other ear: {', '.join(FEATURES)}")
    flags.DEFINE_enum("projection", None, list(PROJECTIONS), "of these features; default: trained, random in parity")


def kind_of_mixtures():
    """Folder of the flags' kind below --data_folder."""
    return VARIANTS[FLAGS.variant][1] or f"{FLAGS.talkers}speakers"


def settings_of_flags(parity):
    """Constructor arguments of MimoTasnet."""
    settings = {argument: FLAGS[flag].value for argument, flag in SIZE_FLAGS.items()}
    settings["norm"] = FLAGS.norm or ("channel" if FLAGS.causal else "global")
    settings["projection"] = FLAGS.projection or ("random" if parity else "trained")
    if FLAGS.window % 2:
        raise UserError(f"--window {FLAGS.window}: should be an even number of samples")
    unknown = set(FLAGS.features) - set(FEATURES)
    if unknown or not FLAGS.features:
        raise UserError(f"--features {','.join(FLAGS.features)}: should be some of {', '.join(FEATURES)}")
    return settings | {"wiring": VARIANTS[FLAGS.variant][0], "parity": parity}


def model_settings(source=""):
    """Constructor arguments of the model: those of a checkpoint, if there is one, or else of the flags.

    Args:
        source: checkpoint that weights will be taken from.

    Raises:
        UserError: a flag that was given disagrees with the checkpoint.
    """
    settings = settings_of_flags(FLAGS.parity)
    if not source:
        return settings
    config = checkpoint.read_config(source)
    if config is None:
        if FLAGS["variant"].present:
            stored, _ = readers.foreign_settings(source, "mimo_tasnet")
            if settings["wiring"] == "cross" and stored["wiring"] == "parallel":
                stored["wiring"] = "cross"  # the same weights
                if settings["projection"] != "random":
                    print(f"{source}: holds no projection of the features; it is drawn from a fixed seed")
        else:
            stored = reference_settings(source)
        stored = {"parity": FLAGS.parity} | stored
    else:
        stored = config["model"]
    # At inference --parity is of scores and sound; the network stays the one that was trained.
    own_flags = SIZE_FLAGS | {"wiring": "variant"} | ({"parity": "parity"} if FLAGS.is_deploy == "0" else {})
    for argument, flag in own_flags.items():
        if FLAGS[flag].present and stored.get(argument, settings[argument]) != settings[argument]:
            raise UserError(
                f"{source}: trained with --{flag} {stored[argument]}, but --{flag} {FLAGS[flag].value} was given;"
                " leave it out or give another checkpoint"
            )
    rate = (config or {}).get("sample_rate", FLAGS.sample_rate)
    if rate != FLAGS.sample_rate:
        raise UserError(f"{source}: of {rate} Hz, --sample_rate is {FLAGS.sample_rate}; give --sample_rate {rate}")
    return settings | stored


def folder_of(set_name):
    """Folder of a set below --data_folder."""
    folder = os.path.join(FLAGS.data_folder, set_name)
    if os.path.isdir(folder):
        return folder
    return set_folder(FLAGS.data_folder, kind_of_mixtures(), set_name, FLAGS.sample_rate, FLAGS.mode)


def read_set(set_name, talkers):
    """feat.batches.binaural_tasnet.BinauralSet of a set below --data_folder."""
    return binaural_tasnet.binaural_set(folder_of(set_name), FLAGS.sample_rate, talkers)


def training_pool(talkers):
    """feat.batches.binaural_tasnet.BinauralPool of --corpus_folder: talkers, listeners, rooms and noise of tr alone.

    All are divided as for the sets of --data_folder, by the seed that these were drawn with.

    Raises:
        UserError: see feat.corpora.binaural_sets.training_talkers.
    """
    utterances, seed = training_talkers(FLAGS.corpus_folder, [folder_of("cv"), folder_of("tt")], FLAGS.seed)
    rate, kind = FLAGS.sample_rate, kind_of_mixtures()
    heads = split_heads(find_heads(FLAGS.hrir, seed), seed)["tr"]
    if kind == "reverb":
        bank = binaural_tasnet.room_bank(draw_rooms("tr", heads, seed, FLAGS.rooms), rate, seed)
    else:
        bank = binaural_tasnet.head_bank(heads, rate, FLAGS.parity)
    noise = []
    if kind == "noise" and FLAGS.noise_folder:
        noise = find_noise(FLAGS.noise_folder, seed)["tr"]
    elif kind == "noise":
        speech = [os.path.join(FLAGS.corpus_folder, path) for paths in utterances.values() for path in paths]
        folder = os.path.join(FLAGS.data_folder, "made_noise", rate_folder(rate), "tr")
        noise = write_recordings(folder, speech, rate, seed)
    return binaural_tasnet.binaural_pool(FLAGS.corpus_folder, utterances, bank, rate, talkers, noise)


class TrainingData(DrawnData):
    """Training and validation batches that the flags describe.

    Args:
        model: MimoTasnet.
        devices: that train.

    Attributes:
        examples: in an epoch.
        whole, whole_validation: see BinauralSeparation.
    """

    def __init__(self, model, devices):
        rate, self.batch_size = FLAGS.sample_rate, FLAGS.batch_size
        self.segment = round(FLAGS.segment_seconds * rate)
        if self.segment and self.segment < model.shortest:
            raise UserError(
                f"--segment_seconds {FLAGS.segment_seconds}: the network needs {model.shortest} samples,"
                f" {model.shortest / rate:.2f} s"
            )
        self.augmentation = Augmentation(
            speeds=(95, 100, 105) if FLAGS.speed_perturb else (),
            shift=(-rate, rate) if FLAGS.rand_shift else None,
            drop_chunks=FLAGS.wavedrop,
            drop_bands=FLAGS.wavedrop,
            parity=FLAGS.parity,
        )
        if FLAGS.dynamic_mixing:
            require_corpus(self.segment)
            self.snr_db = ascending(FLAGS, "snr_db", 2)
            self.pool = training_pool(model.talkers)
            self.examples = FLAGS.epoch_mixtures
        else:
            self.training = read_set("tr", model.talkers)
            self.examples = len(self.training)
        # Devices get mixtures that are padded to the longest of the whole batch.
        self.whole = FLAGS.parity or (self.batch_size == 1 and not FLAGS.dynamic_mixing)
        self.whole_validation = FLAGS.parity or devices == 1
        self.validation = read_set("cv", model.talkers)
        if FLAGS.cv_utterances:
            self.validation = self.validation.some(range(min(FLAGS.cv_utterances, len(self.validation))))
        if self.training is not None:
            require_length(self.training, model, self.augmentation.speeds)
        require_length(self.validation, model)

    def training_batches(self, epoch, skip=0, share=common.Share()):
        """Pieces of the batches of an epoch, the first `skip` left out."""
        options = dict(seed=FLAGS.seed, epoch=epoch, skip=skip, augmentation=self.augmentation, share=share)
        size = self.batch_size
        if self.pool is not None:
            return binaural_tasnet.mixed_batches(
                self.pool, size, self.examples // size, self.segment, snr_db=self.snr_db, **options
            )
        return binaural_tasnet.training_batches(self.training, size, segment_samples=self.segment, **options)

    def drawn_files(self, epoch, count):
        """See train.DrawnData."""
        draws = binaural_tasnet.draw_dynamic(self.pool, count, 1, FLAGS.seed, epoch)
        files = np.column_stack([draws.files, draws.noise]) if len(self.pool.noises) else draws.files
        return self.pool.files.paths, files

    def validation_batches(self, share=common.Share()):
        """Every validation mixture alone."""
        return binaural_tasnet.evaluation_batches(self.validation, share=share)


def require_length(mixtures, model, speeds=()):
    """Raises UserError if a mixture of a BinauralSet, at one of the speeds in %, is shorter than the network takes."""
    fastest = max(speeds, default=100)
    short = np.flatnonzero(speed_samples(mixtures.samples, fastest, mixtures.sample_rate) < model.shortest)
    if short.size:
        at_speed = f" at {fastest} % of the speed" if fastest > 100 else ""
        raise UserError(
            f"{mixtures.files.paths[short[0]]}: {mixtures.samples[short[0]]} samples, the network needs"
            f" {model.shortest}{at_speed}; leave it out"
        )


# Training -----------------------------------------------------------------------------------------


def train_model():
    """--is_deploy 0"""
    strategy = devices.make_strategy()
    with strategy.scope():
        seed_everything(FLAGS.seed)
        model = MimoTasnet(**model_settings(FLAGS.resume_model or FLAGS.load) | {"seed": FLAGS.seed})
        if FLAGS.filterbank == "fourier":
            model.start_as_fourier()
        optimizer = make_optimizer(training_flags.optimizer_name(), FLAGS.learning_rate)
    data = TrainingData(model, strategy.num_replicas_in_sync)
    examples_of = FLAGS.corpus_folder if FLAGS.dynamic_mixing else folder_of("tr")
    epochs = training_flags.epochs_from_flags(data.examples, whole=True, source=examples_of)
    if FLAGS.lr_schedule == "original":
        rule = rules.AnchorRule(FLAGS.learning_rate, True, FLAGS.lr_decay, hold=FLAGS.lr_hold, steps=epochs.steps)
    else:
        rule = training_flags.rule_from_flags(epochs, patience=2)
    task = Task(
        system="mimo_tasnet",
        model=model,
        optimizer=optimizer,
        objective=BinauralSeparation(model, data.whole, data.whole_validation),
        training_batches=data.training_batches,
        validation_batches=data.validation_batches,
        epochs=epochs,
        rule=rule,
        score="snr",
        higher_is_better=True,
        worst_score=-1000.0,
        seconds_per_frame=1 / FLAGS.sample_rate,
        length_key="samples",
        config={name: FLAGS[name].value for name in ("variant", "sample_rate")},
        check_inputs=data.check,
        names_of=data.names_of,
        pictures=pictures.BinauralPictures(
            data.validation.names[: FLAGS.pictures],
            lambda: binaural_tasnet.evaluate(data.validation),
            FLAGS.sample_rate,
            BinauralSeparator(model),
        ),
        fixed_lengths=bool(FLAGS.dynamic_mixing),
        count_macs=lambda batch: model.count_macs(batch["mixture"].shape[1]),
        least_loss=FLAGS.threshold if FLAGS.threshold_byloss else None,
        largest_loss=FLAGS.loss_upper_lim,
    )
    loop.train(task, training_flags.options_from_flags(strategy, task))


# Inference ----------------------------------------------------------------------------------------


class BinauralSeparator:
    """A trained network, ready for recordings.

    Args:
        model: MimoTasnet.
    """

    def __init__(self, model):
        self.model = model
        spec = tf.TensorSpec([1, None, 2], tf.float32)
        self._separate = compiled(lambda mixture: model(mixture)[0], spec)

    @classmethod
    def load(cls, source):
        """Of a checkpoint, with its moving average of the weights if it has one."""
        model = MimoTasnet(**model_settings(source))
        readers.load_for_inference(source, "mimo_tasnet", model)
        return cls(model)

    def __call__(self, mixture):
        """Waveform [samples, 2] -> its talkers, [talkers, samples, 2].

        Raises:
            ValueError: the mixture is too short.
        """
        mixture = np.asarray(mixture, np.float32)
        if len(mixture) < self.model.shortest:
            raise ValueError(f"a mixture of {len(mixture)} samples, {self.model.shortest} are needed")
        return self._separate(mixture[None]).numpy()


def infer():
    """--is_deploy 1"""
    devices.set_precision()
    source = checkpoint_to_use()
    separator = BinauralSeparator.load(source)
    if FLAGS.mixture or FLAGS.output_folder:
        separate_recording(separator)
        return
    mixtures = read_set(FLAGS.set, separator.model.talkers)
    require_length(mixtures, separator.model)
    folder = f"exp/{FLAGS.exp_name}/output_{FLAGS.set}"
    make_writable_directory(os.path.join(folder, "audio_results"))
    saved = len(mixtures) if FLAGS.save_audio < 0 else FLAGS.save_audio
    journal = Journal(folder, [source])
    inputs = [mixtures.files.paths[i :: len(mixtures)] for i in range(len(mixtures))]
    left, bar = journal.left(mixtures.names, inputs)
    for i, batch in zip(bar, binaural_tasnet.evaluate(mixtures.some(left)) if left else ()):
        mixture, references = batch["mixture"][0].numpy(), batch["sources"][0].numpy()
        estimates = separator(mixture)
        found = spatial_metrics.score(estimates, references, mixture, FLAGS.sample_rate)
        if i < saved:
            ordered = estimates if FLAGS.parity else estimates[found["output"] - 1]
            item = i if FLAGS.parity else mixtures.names[i]
            audio_folder = os.path.join(folder, "audio_results")
            write_audio(audio_folder, item, mixture, references, ordered, FLAGS.sample_rate, FLAGS.parity)
        journal.add(mixtures.names[i], found)
    scores = [journal.found(name) for name in mixtures.names]
    table = spatial_metrics.format_table(FLAGS.exp_name, scores)
    write_text(
        os.path.join(folder, "test_results.csv"), spatial_metrics.format_csv(mixtures.names, scores, FLAGS.parity)
    )
    write_text(os.path.join(folder, "table.txt"), table)
    print(table, end="")
    print(f"{folder}: test_results.csv, table.txt, and the sound of {min(saved, len(scores))} mixtures")
    journal.finish()


def write_audio(folder, item, mixture, references, estimates, sample_rate, parity=False):
    """Writes item<item>_mix.wav, _source<k>.wav and _source<k>hat.wav, stereo, 16 bits.

    All are made quieter by one factor where one would be clipped, so that the level differences, between the ears and
    between the talkers, are as they were.

    Args:
        item: number or name.
        mixture: [samples, 2].
        references, estimates: [talkers, samples, 2].
        parity: every ear of every signal is divided by its own peak, as the reference does.
    """
    signals = {"mix": mixture}
    signals |= {f"source{k + 1}": x for k, x in enumerate(references)}
    signals |= {f"source{k + 1}hat": x for k, x in enumerate(estimates)}
    peak = max(1.0, *(np.max(np.abs(x)) for x in signals.values()))
    for name, signal in signals.items():
        path = os.path.join(folder, f"item{item}_{name}.wav")
        write_pcm16(path, binaural.save16(signal) if parity else signal / peak, sample_rate)


def separate_recording(separator):
    """Separates one recording, at whatever rate it has."""
    if not (FLAGS.mixture and FLAGS.output_folder):
        raise UserError("--mixture and --output_folder belong together; one is missing")
    own_rate, rate = wav_info(FLAGS.mixture).sample_rate, FLAGS.sample_rate
    mixture = read_stereo(FLAGS.mixture)
    brought = np.stack([resample(ear, own_rate, rate) for ear in mixture.T], axis=1)
    if len(brought) < separator.model.shortest:
        raise UserError(
            f"{FLAGS.mixture}: {len(brought)} samples at {rate} Hz, {separator.model.shortest} are needed;"
            " give a longer recording"
        )
    # With silence behind it, as in nn/separate.py, so that all of it lies in whole windows.
    hop = separator.model.hop
    behind = 0 if FLAGS.parity else (-len(brought)) % hop + 2 * hop
    estimates = separator(np.pad(brought, ((0, behind), (0, 0))))[:, : len(brought)]
    estimates = np.stack(
        [np.stack([resample(ear, rate, own_rate)[: len(mixture)] for ear in x.T], axis=1) for x in estimates]
    )
    make_writable_directory(FLAGS.output_folder)
    stem = os.path.splitext(os.path.basename(FLAGS.mixture))[0]
    peak = max(1.0, np.max(np.abs(estimates)))
    for k, estimate in enumerate(estimates):
        path = os.path.join(FLAGS.output_folder, f"{stem}_s{k + 1}.wav")
        write_pcm16(path, estimate / peak, own_rate)
        print(f"{path}: {len(estimate) / own_rate:.1f} s, ILD {spatial_metrics.level_difference(estimate):.1f} dB")
