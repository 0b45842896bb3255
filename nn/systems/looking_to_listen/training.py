"""Trains Looking to Listen and separates its test set: flags, objective, data, training and inference."""

import dataclasses
import os

import numpy as np
import tensorflow as tf
from absl import flags
from keras import ops

from feat.base.files import UserError, make_writable_directory
from feat.base.parallel import parallel_stream
from feat.batches import common, looking_to_listen
from feat.corpora.find import find_noise
from feat.signals import postprocess
from feat.signals.audio import write_pcm16
from models import losses
from models.looking_to_listen.network import MASKS, PARITY, RESHAPES, LookingToListen
from models.looking_to_listen.spectra import KINDS, SAMPLE_RATE
from nn.checkpoints import ours as checkpoint
from nn.checkpoints import readers
from nn.recordings.journal import Journal
from nn.recordings.outputs import checkpoint_to_use
from nn.scoring import metrics, report
from nn.systems.looking_to_listen import pictures
from nn.systems.looking_to_listen.recordings import CLIP_SECONDS, SYSTEM, AudioVisualSeparator, load_settings
from nn.training import devices, loop, rules
from nn.training import flags as training_flags
from nn.training.optimizers import make_optimizer
from nn.training.task import DrawnData, Task, seed_everything

FLAGS = flags.FLAGS

LOSSES = ("discriminative", "si_sdr", "both")

# Values of the flags of every system that were not given; of --parity the reference's.
DEFAULTS = dict(clip_norm=5.0, cv_utterances=0)
PARITY_DEFAULTS = dict(cv_utterances=0, gamma=0.1, cycle_in_validation=True, drop_faces=0.0)

# Constructor arguments that flags set.
SIZE_FLAGS = dict(
    faces="faces",
    channels="n_channels",
    last_channels="n_last_channels",
    video_channels="n_video_channels",
    lstm_units="n_lstm_units",
    units="n_units",
    mask="mask",
    spectrogram="spectrogram",
    reshape="reshape",
    dropout="dropout",
)
PRESETS = {
    "published": dict(n_channels=96, n_last_channels=8, n_video_channels=256, n_lstm_units=400, n_units=600),
    "small": dict(n_channels=4, n_last_channels=4, n_video_channels=64, n_lstm_units=64, n_units=128),
}


class AudioVisualSeparation:
    """Objective of Looking to Listen: distance of compressed spectrograms, SI-SDR of waves, or both.

    Args:
        model: LookingToListen.
        loss: one of LOSSES.
        gamma: of losses.discriminative_loss.
        wave_weight: of the negative SI-SDR, dB, where the loss is both.
    """

    def __init__(self, model, loss="discriminative", gamma=0.0, wave_weight=0.01):
        if loss not in LOSSES:
            raise ValueError(f"loss {loss!r}: should be one of {', '.join(LOSSES)}")
        self.model = model
        self.loss = loss
        self.gamma = gamma
        self.wave_weight = wave_weight

    def spectral_loss(self, estimates, sources):
        """Of compressed spectrograms [batch, faces, frames, bins, 2]: [batch]."""
        return losses.discriminative_loss(estimates, sources, self.gamma)

    def __call__(self, batch, training=False):
        """(loss [batch], metrics), all of them [batch].

        Args:
            batch: "mixture" [batch, samples], "sources" [batch, faces, samples], "embeddings" [batch, faces, images,
                size]. Outside training metrics of waves are given too: SI-SDR, BSS-Eval's SDR, and what is gained over
                the mixture, dB.
        """
        sources = ops.cast(batch["sources"], "float32")
        mixture, targets, _ = self.model.analyse(batch["mixture"], sources)
        estimates = self.model((mixture, batch["embeddings"]), training=training)
        # Data sets do not say how many faces there are before they are read.
        targets = ops.reshape(targets, ops.shape(estimates))
        found = {"snr": losses.spectral_snr(estimates, targets)}
        loss = 0.0
        if self.loss != "si_sdr":
            loss = self.spectral_loss(estimates, targets)
        if self.loss != "discriminative" or not training:
            voices = self.model.synthesise(estimates, ops.shape(batch["mixture"])[1])
            si_sdr = losses.si_sdr(voices, sources)
            found["si_sdr"] = ops.mean(si_sdr, axis=1)
            if self.loss != "discriminative":
                loss = loss - found["si_sdr"] * (1.0 if self.loss == "si_sdr" else self.wave_weight)
            if not training:
                before = losses.si_sdr(
                    ops.broadcast_to(ops.expand_dims(batch["mixture"], 1), ops.shape(sources)), sources
                )
                found["si_sdri"] = ops.mean(si_sdr - before, axis=1)
                sdr = tf.numpy_function(_sdr, [voices, sources, batch["mixture"]], tf.float32)
                found["sdr"], found["sdri"] = tf.unstack(tf.ensure_shape(sdr, (2, None)))
        return loss, found


def _sdr(voices, sources, mixtures):
    """[2, batch]: mean SDR, and what is gained of it over the mixture, dB; 0 where it is not defined."""
    rows = []
    for estimates, references, mixture in zip(voices, sources, mixtures):
        sdr = metrics.sdr(estimates, references)
        gained = sdr - metrics.sdr(np.tile(mixture, (len(references), 1)), references)
        defined = np.isfinite(sdr) & np.isfinite(gained)
        rows.append([x[defined].mean() if defined.any() else 0.0 for x in (sdr, gained)])
    return np.array(rows, np.float32).T


# From flags ---------------------------------------------------------------------------------------


def define_flags():
    """Flags of the script."""
    training_flags.define_training_flags(learning_rate=3e-4, lr_decay=0.5, epoch=40, batch_size=2)
    define_model_flags()
    flags.DEFINE_string("exp_name", "looking_to_listen", "name of the experiment: exp/<exp_name>")
    flags.DEFINE_string("data_folder", "faces", "holds audio/, mixed/, embed/ and tables")
    flags.DEFINE_string("train_table", "train.csv", "below --data_folder")
    flags.DEFINE_string("val_table", "val.csv", "below --data_folder")
    flags.DEFINE_float("segment_seconds", CLIP_SECONDS, "of the training mixtures, cut or padded", lower_bound=0.5)
    flags.DEFINE_bool("dynamic_mixing", False, "mix the pieces of --train_table anew at every step")
    flags.DEFINE_integer("epoch_mixtures", 0, "in an epoch of --dynamic_mixing; 0: one for every piece", lower_bound=0)
    flags.DEFINE_integer(
        "talkers", 0, "in a mixture of --dynamic_mixing; 0: as many as faces, 2 at least", lower_bound=0
    )
    flags.DEFINE_float(
        "gain_db", 5.0, "of --dynamic_mixing: talkers are so much louder or softer at most", lower_bound=0
    )
    flags.DEFINE_float("shift_seconds", 0.5, "of --dynamic_mixing: and so much earlier or later", lower_bound=0)
    flags.DEFINE_string("noise_folder", "", "recordings of noise for --dynamic_mixing")
    flags.DEFINE_float("noise_share", 0.5, "of the mixtures that have noise, if there is any", 0.0, 1.0)
    flags.DEFINE_float("noise_gain", 0.3, "largest factor of noise", lower_bound=0)
    flags.DEFINE_float("drop_faces", 0.1, "probability that a face is not seen in training; one always is", 0.0, 1.0)
    flags.DEFINE_enum("loss", "discriminative", list(LOSSES), "of compressed spectrograms, of waves, or of both")
    flags.DEFINE_float("gamma", 0.0, "of the discriminative loss; the reference's is 0.1", lower_bound=0)
    flags.DEFINE_float("wave_weight", 0.01, "of the SI-SDR in --loss both, a dB", lower_bound=0)
    flags.DEFINE_float(
        "cycle_epochs", 4.0, "epochs in which the rate rises tenfold, and in which it falls", lower_bound=0.01
    )
    flags.DEFINE_bool("cycle_in_validation", False, "validation moves the cycle too, as in the reference")
    flags.DEFINE_bool("parity", False, "as the reference, quirks included; see the README")
    flags.DEFINE_string("table", "val.csv", "that --is_deploy 1 separates, below --data_folder")
    flags.DEFINE_integer("count", -1, "mixtures of it, the first ones; -1: all", lower_bound=-1)
    flags.DEFINE_integer("save_audio", 10, "mixtures whose voices are saved as wavs; -1: all", lower_bound=-1)
    flags.DEFINE_bool("swap_faces", False, "also separate every mixture with its faces exchanged, and score that too")
    flags.DEFINE_bool("filter", False, "band pass behind the voices")
    flags.DEFINE_bool("shelf", False, "more of low, less of high frequencies behind the voices")
    flags.DEFINE_list("metrics", ["si_sdr", "sdr"], f"any of {', '.join(metrics.METRICS)}")
    flags.DEFINE_integer("num_workers", 0, "processes that score; 0: all cores", lower_bound=0)


def define_model_flags():
    """Sizes, which the benchmark has too."""
    published = PRESETS["published"]
    flags.DEFINE_enum("preset", "published", list(PRESETS), "sizes; small is for two cores")
    flags.DEFINE_integer("faces", 2, "that are seen at the same time", lower_bound=1)
    flags.DEFINE_integer(
        "n_channels", published["n_channels"], "of the convolutions over the spectrogram", lower_bound=1
    )
    flags.DEFINE_integer("n_last_channels", published["n_last_channels"], "of the last of them", lower_bound=1)
    flags.DEFINE_integer("n_video_channels", published["n_video_channels"], "of those over the faces", lower_bound=1)
    flags.DEFINE_integer("n_lstm_units", published["n_lstm_units"], "of the LSTM, each way", lower_bound=1)
    flags.DEFINE_integer("n_units", published["n_units"], "of the dense layers", lower_bound=1)
    flags.DEFINE_enum("mask", "signed", list(MASKS), "parts between +-2, or between 0 and 2")
    flags.DEFINE_enum(
        "spectrogram", "magnitude", list(KINDS), "what is compressed; see models/looking_to_listen/spectra.py"
    )
    flags.DEFINE_enum("reshape", "", list(RESHAPES), "of the references before 13 February 2021")
    flags.DEFINE_float("dropout", 0.2, "behind the dense layers", 0.0, 0.99)


def apply_presets():
    """Gives flags that were not given their values of --preset, of --parity, and of this system."""
    chosen = PRESETS[FLAGS.preset] | (PARITY_DEFAULTS if FLAGS.parity else DEFAULTS)
    if FLAGS.parity:
        chosen |= {name: PARITY[name] for name in ("mask", "spectrogram")}
    for name, value in chosen.items():
        if not FLAGS[name].present:
            FLAGS[name].value = value


def settings_of_flags():
    """Constructor arguments of LookingToListen, but for embedding_dim."""
    settings = {argument: FLAGS[flag].value for argument, flag in SIZE_FLAGS.items()}
    if FLAGS.parity:
        settings = PARITY | settings
    if settings["spectrogram"] == "asteroid":
        settings |= {"levels": "none", "fixed": True}
    return settings


def model_settings(source="", embedding_dim=None):
    """Constructor arguments of the model: those of a checkpoint, if there is one, or else of the flags.

    Args:
        source: checkpoint that weights will be taken from.
        embedding_dim: of the data.

    Raises:
        UserError: a flag that was given, or the data, disagrees with the checkpoint.
    """
    settings = settings_of_flags()
    if not source:
        return settings | {"embedding_dim": embedding_dim}
    told = {name: FLAGS[name].value for name in ("spectrogram", "reshape") if FLAGS[name].present}
    stored, _ = load_settings(source, **told)
    for argument, flag in SIZE_FLAGS.items():
        if FLAGS[flag].present and stored.get(argument, settings[argument]) != settings[argument]:
            raise UserError(
                f"{source}: trained with --{flag} {stored[argument]}, but --{flag} {FLAGS[flag].value} was given;"
                " leave it out or give another checkpoint"
            )
    if embedding_dim not in (None, stored["embedding_dim"]):
        raise UserError(
            f"{source}: takes embeddings of {stored['embedding_dim']} numbers, those of {FLAGS.data_folder} have"
            f" {embedding_dim}; make them again with the embedder that it was trained with"
        )
    return settings | stored


def embedder_of(source=""):
    """What made the embeddings of --data_folder. Raises UserError if a checkpoint was trained with another."""
    wanted = (checkpoint.read_config(source) or {}).get("embedder") if source else None
    return looking_to_listen.require_embedder(FLAGS.data_folder, wanted, source)


def read_rows(table):
    """[Row] of a table below --data_folder."""
    return looking_to_listen.read_table(os.path.join(FLAGS.data_folder, table))


class TrainingData(DrawnData):
    """Training and validation batches that the flags describe.

    Args:
        model: LookingToListen.

    Attributes:
        examples: in an epoch.
    """

    def __init__(self, model):
        self.batch_size = FLAGS.batch_size
        self.samples = round(FLAGS.segment_seconds * SAMPLE_RATE)
        if model.fixed and self.samples != CLIP_SECONDS * SAMPLE_RATE:
            raise UserError(f"--segment_seconds {FLAGS.segment_seconds}: this network takes {CLIP_SECONDS} s alone")
        rows = read_rows(FLAGS.train_table)
        if FLAGS.dynamic_mixing:
            noises = find_noise(FLAGS.noise_folder, FLAGS.seed)["tr"] if FLAGS.noise_folder else []
            talkers = FLAGS.talkers or max(2, model.faces)
            if talkers < model.faces:
                raise UserError(f"--talkers {talkers}: fewer than the {model.faces} faces of the network")
            self.pool = looking_to_listen.audio_visual_pieces(
                FLAGS.data_folder, rows, talkers, model.faces, model.embedding_dim, noises
            )
            self.examples = FLAGS.epoch_mixtures or len(self.pool)
        else:
            self.training = looking_to_listen.audio_visual_set(
                FLAGS.data_folder, rows, model.faces, model.embedding_dim
            )
            self.examples = len(self.training)
        validation = read_rows(FLAGS.val_table)
        validation = validation[: FLAGS.cv_utterances or None]
        self.validation = looking_to_listen.audio_visual_set(
            FLAGS.data_folder, validation, model.faces, model.embedding_dim
        )

    def training_batches(self, epoch, skip=0, share=common.Share()):
        """Pieces of the batches of an epoch, the first `skip` left out."""
        size = self.batch_size
        options = dict(
            seed=FLAGS.seed, epoch=epoch, skip=skip, samples=self.samples, drop_faces=FLAGS.drop_faces, share=share
        )
        if self.pool is None:
            return looking_to_listen.training_batches(self.training, size, **options)
        return looking_to_listen.mixed_batches(
            self.pool, size, self.examples // size, **self._mixing_options(), **options
        )

    @staticmethod
    def _mixing_options():
        return dict(
            gain_db=FLAGS.gain_db,
            shift_images=round(FLAGS.shift_seconds * looking_to_listen.IMAGE_RATE),
            noise_share=FLAGS.noise_share,
            noise_gain=FLAGS.noise_gain,
        )

    def drawn_files(self, epoch, count):
        """See train.DrawnData."""
        draws = looking_to_listen.draw_mixtures(self.pool, count, 1, FLAGS.seed, epoch, **self._mixing_options())
        return self.pool.files.paths, np.column_stack([draws.picked, draws.noise])

    def validation_batches(self, share=common.Share()):
        """Every validation mixture alone."""
        return looking_to_listen.evaluation_batches(self.validation, share)


# Training -----------------------------------------------------------------------------------------


def train_model():
    """--is_deploy 0"""
    strategy = devices.make_strategy()
    source = FLAGS.resume_model or FLAGS.load
    going_on = os.path.join(training_flags.run_folder(), "best")
    embedder = embedder_of(source or (going_on if os.path.exists(going_on) else ""))
    with strategy.scope():
        seed_everything(FLAGS.seed)
        model = LookingToListen(**model_settings(source, embedder["size"]))
        if model.mask == "signed" and not source:
            model.start_as_mixture()
        optimizer = make_optimizer(training_flags.optimizer_name(), FLAGS.learning_rate)
    data = TrainingData(model)
    examples_of = os.path.join(FLAGS.data_folder, FLAGS.train_table)
    epochs = training_flags.epochs_from_flags(data.examples, whole=True, source=examples_of)
    if FLAGS.lr_schedule == "original":
        rule = rules.CyclicRule(
            FLAGS.learning_rate,
            10 * FLAGS.learning_rate,
            FLAGS.cycle_epochs * epochs.steps,
            epochs.steps,
            len(data.validation) if FLAGS.cycle_in_validation else 0,
        )
    else:
        rule = training_flags.rule_from_flags(epochs, patience=2, higher_is_better=not FLAGS.parity)
    task = Task(
        system=SYSTEM,
        model=model,
        optimizer=optimizer,
        objective=AudioVisualSeparation(model, FLAGS.loss, FLAGS.gamma, FLAGS.wave_weight),
        training_batches=data.training_batches,
        validation_batches=data.validation_batches,
        epochs=epochs,
        rule=rule,
        score="loss" if FLAGS.parity else "si_sdr",
        higher_is_better=not FLAGS.parity,
        worst_score=1e9 if FLAGS.parity else -1000.0,
        seconds_per_frame=1 / SAMPLE_RATE,
        length_key="samples",
        config={"embedder": embedder, "sample_rate": SAMPLE_RATE},
        check_inputs=data.check,
        names_of=data.names_of,
        pictures=pictures.AudioVisualPictures(
            data.validation.names[: FLAGS.pictures],
            lambda: looking_to_listen.evaluate(data.validation),
            SAMPLE_RATE,
            AudioVisualSeparator(model),
        ),
        fixed_lengths=True,
        count_macs=lambda batch: model.count_macs(
            model.frontend.frames(batch["mixture"].shape[1]), batch["embeddings"].shape[2]
        ),
    )
    loop.train(task, training_flags.options_from_flags(strategy, task, finish=not FLAGS.parity))


# Inference ----------------------------------------------------------------------------------------


def infer():
    """--is_deploy 1"""
    devices.set_precision()
    source = checkpoint_to_use()
    embedder = embedder_of(source)
    model = LookingToListen(**model_settings(source, embedder["size"]))
    readers.load_for_inference(source, SYSTEM, model)
    separator = AudioVisualSeparator(model)
    rows = read_rows(FLAGS.table)
    rows = rows if FLAGS.count < 0 else rows[: FLAGS.count]
    report.require_scorable(FLAGS.metrics, SAMPLE_RATE, model.faces, FLAGS.num_workers)
    if not rows:
        raise UserError("--count 0: nothing to separate; give a larger one")
    mixtures = looking_to_listen.audio_visual_set(FLAGS.data_folder, rows, model.faces, model.embedding_dim)
    folder = f"exp/{FLAGS.exp_name}/output_{os.path.splitext(os.path.basename(FLAGS.table))[0]}"
    make_writable_directory(folder)
    saved = len(mixtures) if FLAGS.save_audio < 0 else FLAGS.save_audio
    journal = Journal(folder, [source])
    left, bar = journal.left([row.mixed for row in rows], map(mixtures.paths, range(len(rows))))

    def separated():
        for i, batch in zip(bar, looking_to_listen.evaluate(mixtures.some(left)) if left else ()):
            mixture, references = batch["mixture"][0].numpy(), batch["sources"][0].numpy()
            voices = separator(mixture, batch["embeddings"][0])
            if FLAGS.filter:
                voices = postprocess.filter_audio(voices, SAMPLE_RATE, parity=FLAGS.parity)
            if FLAGS.shelf:
                voices = postprocess.shelf(voices, SAMPLE_RATE)
            if i < saved:
                write_voices(folder, rows[i], voices)
            found = {"by face": voices}
            if FLAGS.swap_faces:
                found["faces exchanged"] = separator(mixture, np.roll(batch["embeddings"][0], 1, axis=0))
            yield found, references, mixture, tuple(FLAGS.metrics)

    for i, scores in zip(left, parallel_stream(score_mixture, separated(), FLAGS.num_workers, "score")):
        journal.add(rows[i].mixed, {label: dataclasses.asdict(each) for label, each in scores.items()})
    scored = [
        {label: report.UtteranceScores(**found) for label, found in journal.found(row.mixed).items()} for row in rows
    ]
    about = report.Dataset(FLAGS.data_folder, "", FLAGS.table, model.faces, SAMPLE_RATE)
    evaluation = report.Evaluation(about, [], [row.name for row in rows], scored, fixed_order=True)
    print(report.write_report(evaluation, os.path.join(folder, "scores")), end="")
    print(f"{folder}: scores of {len(rows)} mixtures, voices of {min(saved, len(rows))}")
    journal.finish()


def score_mixture(job):
    """{label: evaluate.UtteranceScores} of ({label: voices}, references, mixture, names of metrics).

    The order is the faces', so what was separated with the faces exchanged is held against the voices exchanged.
    """
    found, references, mixture, names = job
    before = metrics.score(np.tile(mixture, (len(references), 1)), references, SAMPLE_RATE, names)
    scores = {report.MIXTURE: report.UtteranceScores((), metrics.with_improvements(before, before), {})}
    for label, voices in found.items():
        turn = 0 if label == "by face" else 1
        after = metrics.score(voices, np.roll(references, turn, axis=0), SAMPLE_RATE, names)
        after = metrics.with_improvements(after, {name: np.roll(values, turn) for name, values in before.items()})
        scores[label] = report.UtteranceScores(tuple(range(1, len(voices) + 1)), after, {})
    return scores


def write_voices(folder, row, voices):
    """Writes <mixture>/<embedding's name>.wav of every face, all at one factor where one would be clipped."""
    peak = max(1.0, float(np.max(np.abs(voices))))
    for path, voice in zip(row.embeddings, voices):
        stem = os.path.splitext(os.path.basename(path))[0]
        write_pcm16(os.path.join(folder, row.name, stem + ".wav"), voice / peak, SAMPLE_RATE)
