"""Trains SpEx+ and extracts the talkers of its test set: flags, objective, data, training and inference."""

import json
import math
import os

import numpy as np
from absl import flags
from keras import ops

from feat.base.files import UserError, brief, make_writable_directory, write_text
from feat.batches import common, spex_plus
from feat.corpora.find import find_speakers
from feat.corpora.lists import names_path, read_names
from feat.corpora.scp import ROOT_HELP
from feat.corpora.talkers import find_genders, read_genders
from feat.corpora.triplets import read_durations, read_speakers, read_triplets, require_labels, speakers_of
from feat.signals.audio import read_first_channel, wav_info
from models import losses
from models.layers.conv_tasnet import NORMS, zero_behind
from models.spex_plus.network import BRANCHES, MASKS, SAMPLE_RATES, VARIANTS, SpexPlus, shortest_enrolment
from nn.checkpoints import ours as checkpoint
from nn.checkpoints import readers
from nn.checkpoints.spex_plus_config import read_reference_config
from nn.recordings.journal import Journal
from nn.recordings.outputs import OutputFolder, checkpoint_to_use
from nn.scoring import metrics, report, score_groups
from nn.systems.separator import Separator, separate_file
from nn.systems.spex_plus import pictures, presence
from nn.systems.spex_plus.recordings import (
    LEAST_ENROLMENT_S,
    LEVELS,
    Extractor,
    TrainingLevels,
    match_level,
    stored_settings,
)
from nn.training import devices, loop
from nn.training import flags as training_flags
from nn.training.optimizers import make_optimizer
from nn.training.task import DrawnData, Task, require_corpus, seed_everything

FLAGS = flags.FLAGS

RATIOS = {"si_sdr": losses.si_sdr, "si_snr": losses.si_snr}

# Values of the flags that were not given.
PRESETS = {
    "seed": dict(batch_size=5, epoch=21, segment_seconds=3.0, lr_schedule="onecycle", ratio="si_sdr"),
    "authors": dict(batch_size=20, epoch=100, segment_seconds=4.0, lr_schedule="plateau", ratio="si_snr", l2=1e-5),
}

LEVEL_BATCHES = 8  # that the level of training is measured on

# Constructor arguments that flags set.
SIZE_FLAGS = dict(
    filters="n_filters",
    bottleneck="n_bottle",
    units="n_units",
    embedding_dim="embedding_dim",
    speaker_units="n_speaker_units",
    taps="n_taps",
    dilations="n_blocks",
    repeats="n_repeats",
    norm="norm",
    causal="causal",
    mask="mask",
)


class TargetExtraction:
    """Objective of SpEx+: weighted SI-SDR of three estimates, and the classification of the speaker.

    Args:
        model: SpexPlus.
        ratio: "si_sdr" keeps means, as the seed does; "si_snr" removes them, as the authors do.
        classification: weight of the cross-entropy.
        middle, long: weights of the second and third estimate; the first has what they leave of 1.
        whole: in training all mixtures of a batch have one length, so that "samples" need not be looked at.
    """

    def __init__(self, model, ratio="si_sdr", classification=0.5, middle=0.1, long=0.1, whole=False):
        self.model = model
        self.ratio = RATIOS[ratio]
        self.classification = classification
        self.middle = middle
        self.long = long
        self.whole = whole

    def __call__(self, batch, training=False):
        """(loss [batch], its parts, and unless in training the metrics), all of them [batch].

        Args:
            batch: what SpexPlus takes, "target" [batch, samples] and "speaker" [batch] int, -1 for one who is not
                in the training set. With "samples", what is behind them does not count.
        """
        if self.whole and training:
            batch = {name: value for name, value in batch.items() if name != "samples"}
        outputs = self.model(batch, training=training)
        estimates, target = [outputs[branch] for branch in BRANCHES], batch["target"]
        if "samples" in batch:
            estimates = [zero_behind(estimate, batch["samples"]) for estimate in estimates]
            target = zero_behind(target, batch["samples"])
        extraction = losses.extraction_loss(estimates, target, self.ratio, self.middle, self.long)
        classification = losses.cross_entropy(outputs["logits"], batch["speaker"])
        found = {"extraction_loss": extraction, "cross_entropy": classification}
        if not training:
            named = ops.cast(ops.argmax(outputs["logits"], axis=-1), "int32")
            right = ops.equal(named, ops.cast(batch["speaker"], "int32"))
            found |= {"si_sdr": self.ratio(estimates[0], target), "speakers_right": ops.cast(right, "float32")}
        return extraction + self.classification * classification, found


# From flags ---------------------------------------------------------------------------------------


def define_flags():
    """Flags of the script; those whose default depends on --variant are in PRESETS."""
    training_flags.define_training_flags(learning_rate=1e-3, lr_decay=0.5)
    flags.DEFINE_enum("variant", "seed", list(VARIANTS), "ir4kgl/ss_dla at 16 kHz, or gemengtju/SpEx_Plus at 8 kHz")
    flags.DEFINE_string(
        "config", "", "config.json of ir4kgl/ss_dla or conf.py of gemengtju/SpEx_Plus: defaults of the other flags"
    )
    flags.DEFINE_string("exp_name", "spex_plus", "name of the experiment: exp/<exp_name>")
    flags.DEFINE_list(
        "data_folder", ["triplets"], "holds the sets tr/, cv/ and tt/, see feat/corpora/triplets.py; or several"
    )
    flags.DEFINE_integer("sample_rate", None, "Hz; files of other rates are resampled; default of the variant")
    flags.DEFINE_string("speakers_file", "", "talkers in the order of their classes, one a line; default: those of tr")
    flags.DEFINE_list("scp_root", [], ROOT_HELP)
    flags.DEFINE_string(
        "durations_file", "", "utterances and their seconds, for .scp lists of mixtures as long as the longer"
    )
    flags.DEFINE_bool("dynamic_mixing", False, "mix the utterances of --corpus_folder anew at every step")
    flags.DEFINE_string("corpus_folder", "", "a folder for every talker; for --dynamic_mixing")
    flags.DEFINE_integer("epoch_mixtures", 20000, "mixtures in an epoch of --dynamic_mixing", lower_bound=1)
    flags.DEFINE_list("snr_db", ["0", "5"], "lowest,highest dB of target over interferer in --dynamic_mixing")
    flags.DEFINE_bool(
        "both_talkers",
        False,
        "each mixture of --dynamic_mixing is two examples, one for each talker, so that nothing but the enrolment tells"
        " which of them is wanted; take lowest and highest --snr_db of opposite signs with it",
    )
    flags.DEFINE_float("segment_seconds", None, "train on pieces of so many seconds; 0: whole mixtures", lower_bound=0)
    flags.DEFINE_float("enrolment_seconds", 0.0, "cut longer enrolments in training; 0: none", lower_bound=0)
    flags.DEFINE_float("gain_db", 0.0, "training mixtures and enrolments are made louder or softer by up to so many dB")
    flags.DEFINE_bool("parity", False, "batches, padding and validation as the reference code has them")
    flags.DEFINE_integer("classes", None, "speakers that are told apart in training; default: those of tr")
    flags.DEFINE_list("windows_ms", ["2.5", "10", "20"], "windows of the encoders; the hop is half of the first")
    flags.DEFINE_enum("filterbank", "random", ["random", "fourier"], "what encoders and decoders are before training")
    flags.DEFINE_integer("n_filters", 256, "of each encoder", lower_bound=1)
    flags.DEFINE_integer("n_bottle", 256, "channels between dilated blocks", lower_bound=1)
    flags.DEFINE_integer("n_units", 512, "channels of a dilated block", lower_bound=1)
    flags.DEFINE_integer("n_taps", 3, "of the dilated convolutions", lower_bound=1)
    flags.DEFINE_integer("n_blocks", 8, "dilated blocks in a series", lower_bound=1)
    flags.DEFINE_integer("n_repeats", 4, "series of dilated blocks", lower_bound=1)
    flags.DEFINE_integer("embedding_dim", 256, "size of a speaker's embedding", lower_bound=1)
    flags.DEFINE_integer("n_speaker_units", 512, "channels of the speaker encoder", lower_bound=1)
    flags.DEFINE_enum("norm", "global", list(NORMS), "of the dilated blocks")
    flags.DEFINE_bool("causal", False, "dilated convolutions over past frames; take --norm cumulative with it")
    flags.DEFINE_enum("mask", "relu", list(MASKS), "what makes masks")
    flags.DEFINE_enum("ratio", None, list(RATIOS), "loss: si_sdr keeps means, si_snr removes them")
    flags.DEFINE_float("classification", 0.5, "weight of the cross-entropy of the speaker", lower_bound=0)
    flags.DEFINE_float("middle", 0.1, "weight of the middle window's estimate in the loss", 0, 1)
    flags.DEFINE_float("long", 0.1, "weight of the long window's estimate in the loss", 0, 1)
    flags.DEFINE_float("l2", 0.0, "times each weight is added to its gradient", lower_bound=0)
    flags.DEFINE_string("set", "tt", "set that --is_deploy 1 extracts")
    flags.DEFINE_string("mixture", "", "extract from this recording alone")
    flags.DEFINE_multi_string("enrolment", [], "recording of the wanted talker; repeat to average several")
    flags.DEFINE_string("output", "", "wav to write")
    flags.DEFINE_enum(
        "level",
        "projection",
        LEVELS,
        "of what is extracted: as loud as it is in the mixture, with the peak of the mixture, or as it comes",
    )
    flags.DEFINE_bool(
        "absent", False, "extract each mixture of the set by a voice that is not in it too: what --reject is worth"
    )
    flags.DEFINE_string(
        "genders_file", "", "talkers (or mixtures) and M or F, for a table of scores; default: that of the set's corpus"
    )
    flags.DEFINE_list("metrics", list(report.DEFAULT_METRICS), f"any of {', '.join(metrics.METRICS)}")
    flags.DEFINE_integer("num_workers", 0, "processes that score; 0 for all cores", lower_bound=0)


def apply_variant():
    """Gives flags that were not given the values of --config, or else the variant's.

    Raises:
        UserError: --config is of no use.
    """
    configured = {}
    if FLAGS.config:
        configured, left = read_reference_config(FLAGS.config)
        if left:
            print(f"{FLAGS.config}: not taken over: {', '.join(left)}")
        if FLAGS.parity and configured.get("mask") == "softmax":
            configured["mask"] = "batch_softmax"  # as the reference has it
    if not FLAGS["variant"].present:
        FLAGS.variant = configured.get("variant", FLAGS.variant)
    for name, value in (PRESETS[FLAGS.variant] | {"sample_rate": SAMPLE_RATES[FLAGS.variant]} | configured).items():
        flag = FLAGS[name]
        if not flag.present:
            try:
                flag.value = flag.parser.parse(str(value))
            except ValueError as error:
                raise UserError(f"{FLAGS.config}: {value!r} for --{name}: {brief(error)}") from error


def model_settings(source="", own_classes=False):
    """Constructor arguments of the model: those of a checkpoint, if there is one, or else of the flags.

    Args:
        source: checkpoint that weights will be taken from.
        own_classes: its classes do not count.

    Raises:
        UserError: a flag that was given disagrees with the checkpoint.
    """
    settings = VARIANTS[FLAGS.variant] | {argument: FLAGS[flag].value for argument, flag in SIZE_FLAGS.items()}
    settings["windows"] = window_samples()
    if FLAGS.n_taps % 2 == 0:
        raise UserError(f"--n_taps {FLAGS.n_taps}: should be odd, so that frames stay where they are")
    settings |= {"parity": FLAGS.parity, "classes": FLAGS.classes or settings["classes"]}
    if not source:
        return settings
    stored, config = stored_settings(source)
    if FLAGS["windows_ms"].present and list(stored["windows"]) != settings["windows"]:
        raise UserError(
            f"{source}: trained with windows of {', '.join(map(str, stored['windows']))} samples; leave --windows_ms"
            " out or give another checkpoint"
        )
    for argument, flag in (SIZE_FLAGS | ({} if own_classes else {"classes": "classes"})).items():
        if argument in stored and FLAGS[flag].present and FLAGS[flag].value != stored[argument]:
            raise UserError(
                f"{source}: trained with --{flag} {stored[argument]}, but --{flag} {FLAGS[flag].value} was given;"
                " leave it out or give another checkpoint"
            )
    if config.get("sample_rate", FLAGS.sample_rate) != FLAGS.sample_rate:
        raise UserError(
            f"{source}: of {config['sample_rate']} Hz, --sample_rate is {FLAGS.sample_rate};"
            f" give --sample_rate {config['sample_rate']}, or the --variant that it is of"
        )
    kept = ("parity", "classes") if own_classes else ("parity",)
    return settings | {name: value for name, value in stored.items() if name not in kept}


def numbers_of(flag, count, what):
    """The `count` numbers of a list flag, in ascending order. Raises UserError."""
    try:
        numbers = [float(value) for value in FLAGS[flag].value]
    except ValueError:
        numbers = []
    if len(numbers) != count or not np.isfinite(numbers).all() or numbers != sorted(numbers):
        raise UserError(f"--{flag} {','.join(FLAGS[flag].value)}: give {what}")
    return numbers


def window_samples():
    """Samples of the three windows of --windows_ms."""
    what = "three ascending numbers of ms, such as 2.5,10,20, the first of two samples at least"
    samples = [round(ms * FLAGS.sample_rate / 1000) for ms in numbers_of("windows_ms", 3, what)]
    if samples[0] < 2:
        raise UserError(f"--windows_ms {','.join(FLAGS.windows_ms)}: give {what}")
    return samples


def set_folders(set_name):
    """Folders of a set, one below each of --data_folder."""
    return [os.path.join(folder, set_name) for folder in FLAGS.data_folder]


def read_set(set_name, speakers=None):
    """[Triplet] of a set below --data_folder, of one folder after the other; labels count through all of them."""
    lists = {"roots": FLAGS.scp_root}
    if FLAGS.durations_file:
        lists["durations"] = read_durations(FLAGS.durations_file)
    folders = set_folders(set_name)
    found = [read_triplets(folder, speakers, **lists) for folder in folders]
    if speakers is None and len(found) > 1:
        speakers = list(dict.fromkeys(speaker for triplets in found for speaker in speakers_of(triplets)))
        found = [read_triplets(folder, speakers, **lists) for folder in folders]
    return [triplet for triplets in found for triplet in triplets]


class TrainingData(DrawnData):
    """Training and validation batches that the flags describe.

    Args:
        mixture, enrolment: samples that the network needs of each.
        speakers: in the order of their classes, unless --speakers_file says; None: those of the training set.

    Attributes:
        speakers: in the order of their classes.
        examples: in an epoch.
        whole: all training mixtures of a batch have one length.
    """

    def __init__(self, mixture, enrolment, speakers=None):
        rate, self.batch_size = FLAGS.sample_rate, FLAGS.batch_size
        speakers = read_speakers(FLAGS.speakers_file) if FLAGS.speakers_file else speakers
        self.segment = round(FLAGS.segment_seconds * rate)
        self.enrolment = round(FLAGS.enrolment_seconds * rate)
        for flag, given, needed in (
            ("segment_seconds", self.segment, mixture),
            ("enrolment_seconds", self.enrolment, enrolment),
        ):
            # Chunks have a length in any case; else 0 stands for no limit.
            limited = FLAGS[flag].value > 0 or (self.chunked and flag == "segment_seconds")
            if limited and given < needed:
                raise UserError(
                    f"--{flag} {FLAGS[flag].value}: {given} samples, the network needs {needed};"
                    f" give {math.ceil(1000 * needed / rate) / 1000} or more"
                )
        self.whole = FLAGS.dynamic_mixing or (FLAGS.parity and FLAGS.variant == "seed")
        if FLAGS.dynamic_mixing:
            require_corpus(self.segment)
            self.pool = spex_plus.talker_pool(
                FLAGS.corpus_folder, find_speakers(FLAGS.corpus_folder), rate, speakers, enrolment
            )
            self.snr_db = numbers_of("snr_db", 2, "lowest,highest, such as -5,5")
            if FLAGS.both_talkers and FLAGS.batch_size % 2:
                raise UserError(f"--both_talkers: --batch_size {FLAGS.batch_size} should be even")
            speakers, self.examples = self.pool.speakers, FLAGS.epoch_mixtures
        elif FLAGS.both_talkers:
            raise UserError("--both_talkers: is of --dynamic_mixing; give that too, or leave it out")
        else:
            triplets = read_set("tr", speakers)
            speakers = speakers or speakers_of(triplets)
            require_labels(triplets, FLAGS.classes or len(speakers))
            self.training = spex_plus.triplet_set(triplets, rate, parity=FLAGS.parity)
            self.training.require(mixture, enrolment)
            self.examples = len(triplets)
            if self.chunked:
                self.examples = spex_plus.chunk_count(self.training, self.segment, self.segment // 2)
        self.speakers = speakers
        validation = read_set("cv", speakers)
        if FLAGS.cv_utterances:
            validation = validation[: FLAGS.cv_utterances]
        self.validation = spex_plus.triplet_set(validation, rate, parity=FLAGS.parity)
        self.validation.require(mixture, enrolment)

    @property
    def chunked(self):
        """Whether utterances are cut into chunks as the authors do."""
        return FLAGS.parity and FLAGS.variant == "authors"

    def training_batches(self, epoch, skip=0, share=common.Share()):
        """Pieces of the batches of an epoch, the first `skip` left out."""
        gain = (-FLAGS.gain_db, FLAGS.gain_db) if FLAGS.gain_db else None
        size = self.batch_size
        options = dict(seed=FLAGS.seed, epoch=epoch, skip=skip, gain_db=gain, share=share)
        if self.pool is not None:
            return spex_plus.mixed_batches(
                self.pool,
                size,
                self.examples // size,
                self.segment,
                enrolment_samples=self.enrolment,
                snr_db=self.snr_db,
                both=FLAGS.both_talkers,
                **options,
            )
        if self.chunked:
            return spex_plus.chunk_batches(self.training, self.segment, self.segment // 2, size, **options)
        if FLAGS.parity:
            return spex_plus.shortest_batches(self.training, size, **options)
        lengths = dict(segment_samples=self.segment, enrolment_samples=self.enrolment)
        return spex_plus.training_batches(self.training, size, **lengths, **options)

    def validation_batches(self, share=common.Share()):
        """Every validation mixture alone."""
        return spex_plus.evaluation_batches(self.validation, share=share)

    def drawn_files(self, epoch, count):
        """See train.DrawnData; the enrolments are left out."""
        _, files, *_ = spex_plus.draw_mixed_triplets(
            self.pool, count, self.segment, self.enrolment, self.snr_db, FLAGS.seed, epoch, FLAGS.both_talkers
        )
        return self.pool.files.paths, files[:, :2]


def make_objective(model, whole=False):
    """The objective that the flags ask for."""
    if FLAGS.middle + FLAGS.long > 1:
        raise UserError(f"--middle {FLAGS.middle} --long {FLAGS.long}: should not sum up to more than 1")
    return TargetExtraction(model, FLAGS.ratio, FLAGS.classification, FLAGS.middle, FLAGS.long, whole)


# Training -----------------------------------------------------------------------------------------


def training_levels(data, model):
    """{"mixture", "enrolment": dB} of the first batches, see TrainingLevels; as they were in a run that goes on."""
    config = checkpoint.read_config(os.path.join(training_flags.run_folder(), "best"))
    if config and "levels_db" in config:
        return config["levels_db"]
    levels = TrainingLevels(model.windows[1])
    for batch in common.checked(data.training_batches(0).take(LEVEL_BATCHES), data.check):
        levels.add(batch)
    return levels.levels_db


def train_model():
    """--is_deploy 0"""
    strategy = devices.make_strategy()
    source, own_classes = FLAGS.resume_model or FLAGS.load, bool(FLAGS.load)
    settings = model_settings(source, own_classes)
    windows = settings["windows"]
    # What goes on elsewhere keeps the numbers of its talkers.
    speakers = (checkpoint.read_config(FLAGS.resume_model) or {}).get("speakers") if FLAGS.resume_model else None
    data = TrainingData(windows[0], shortest_enrolment(windows, settings["average_pool"]), speakers)
    classes = len(data.speakers)
    if own_classes or not source:
        settings["classes"] = FLAGS.classes or classes
    with strategy.scope():
        seed_everything(FLAGS.seed)
        model = SpexPlus(**settings)
        if FLAGS.filterbank == "fourier":
            model.start_as_fourier()
        optimizer = make_optimizer(training_flags.optimizer_name(), FLAGS.learning_rate, l2=FLAGS.l2)
        objective = make_objective(model, data.whole)
    if classes > model.settings["classes"]:
        raise UserError(
            f"{','.join(FLAGS.data_folder)}: {classes} speakers in tr, the model tells"
            f" {model.settings['classes']} apart; give --classes {classes}"
            + (", and --load in place of --resume_model" if FLAGS.resume_model else "")
        )
    examples_of = FLAGS.corpus_folder if FLAGS.dynamic_mixing else ",".join(set_folders("tr"))
    epochs = training_flags.epochs_from_flags(data.examples, whole=True, source=examples_of)
    task = Task(
        system="spex_plus",
        model=model,
        optimizer=optimizer,
        objective=objective,
        training_batches=data.training_batches,
        validation_batches=data.validation_batches,
        epochs=epochs,
        rule=training_flags.rule_from_flags(epochs, patience=2, higher_is_better=True),
        score="si_sdr",
        higher_is_better=True,
        worst_score=-100.0,
        seconds_per_frame=1 / FLAGS.sample_rate,
        length_key="samples",
        config={name: FLAGS[name].value for name in ("variant", "sample_rate", "ratio")},
        notes={"levels_db": training_levels(data, model), "speakers": list(data.speakers)},
        check_inputs=data.check,
        names_of=data.names_of,
        pictures=pictures.ExtractionPictures(
            data.validation.names[: FLAGS.pictures],
            lambda: spex_plus.evaluate(data.validation),
            FLAGS.sample_rate,
            Extractor(model).batch,
        ),
        fixed_lengths=data.whole,
        count_macs=lambda batch: model.count_macs(batch["mixture"].shape[1], batch["enrolment"].shape[1]),
    )
    loop.train(task, training_flags.options_from_flags(strategy, task))


# Inference ----------------------------------------------------------------------------------------


def load_extractor(source):
    """Extractor of a checkpoint, with its moving average of the weights if it has one; flags must agree with it."""
    model = SpexPlus(**model_settings(source))
    readers.load_for_inference(source, "spex_plus", model)
    levels_db = None if FLAGS.parity else stored_settings(source)[1].get("levels_db")
    return Extractor(model, levels_db, FLAGS.parity)


def infer():
    """--is_deploy 1"""
    devices.set_precision()
    source = checkpoint_to_use()
    if FLAGS.mixture or FLAGS.enrolment or FLAGS.output:
        extract_recording(source)
        return
    rate = FLAGS.sample_rate
    # What would be refused after the extraction is refused now.
    scored = [metric for metric in FLAGS.metrics if metric != "pesq" or rate in metrics.PESQ_MODES]
    report.require_scorable(scored, rate, 1, FLAGS.num_workers)
    presence.read_threshold(source)
    triplets = read_set(FLAGS.set)
    genders = genders_of_set()
    if genders is not None:
        score_groups.label_talkers([triplet.name for triplet in triplets], 1, genders=genders)
    drawn = presence.draw_absent(triplets, FLAGS.seed) if FLAGS.absent else []
    extractor = load_extractor(source)
    folder = f"exp/{FLAGS.exp_name}/output_{FLAGS.set}"
    found = spex_plus.triplet_set(triplets, rate, parity=FLAGS.parity)
    found.require(1, math.ceil(LEAST_ENROLMENT_S * rate))
    lists = write_names(f"{folder}/lists", triplets)
    output = OutputFolder(f"{folder}/files", found)
    # What --config says is kept flag by flag.
    journal = Journal(folder, [source], regardless=("metrics", "genders_file", "config"))
    inputs = [[triplet.mixture, triplet.target, *triplet.enrolments] for triplet in triplets]
    for paths, other in zip(inputs, drawn):
        paths += other.enrolments
    for i in journal.left(found.names, inputs, output.has, "extract")[1]:
        triplet = triplets[i]
        mixture, target = (
            read_first_channel(path, rate, FLAGS.parity)[: found.samples[i]]
            for path in (triplet.mixture, triplet.target)
        )
        estimate, confidence = extract(extractor, mixture, triplet)
        said = {"confidence": confidence, "ratio": float(RATIOS[FLAGS.ratio](estimate, target))}
        if drawn:
            said["absent"] = extract(extractor, mixture, drawn[i])[1]
        said["quieter"] = output.write(triplet.name, np.stack([target, mixture]), estimate[None])
        journal.add(triplet.name, said)
    results = [journal.found(triplet.name) for triplet in triplets]
    output.finish([said["quieter"] for said in results])
    present, absent = [said["confidence"] for said in results], [said["absent"] for said in results if drawn]
    evaluation = report.evaluate(
        {"extracted": f"{folder}/files"}, wav_list_folder=lists, set_name=FLAGS.set, talkers=1, sample_rate=rate,
        metric_names=scored, source="bin", num_workers=FLAGS.num_workers, genders=genders,
    )  # fmt: skip
    print(report.write_report(evaluation, f"{folder}/scores"), end="")
    means = report.summarize(evaluation)["systems"][-1]["means"]
    # The seed's number keeps means, which the table removes, as the authors do.
    if FLAGS.ratio == "si_sdr" and "si_sdr" in means:
        means["si_sdr"] = float(np.mean([said["ratio"] for said in results]))
    for name in ("si_sdr", "pesq"):
        if means.get(name) is not None:
            print(f"mean {report.HEADINGS[name]}:\t {means[name]}")
    presence.write_confidences(f"{folder}/scores", triplets, present, absent, drawn)
    if drawn:
        set_folder = ",".join(set_folders(FLAGS.set))
        lines = presence.measure_threshold(source, set_folder, f"{folder}/scores", present, absent)
        print("\n".join(lines))
    journal.finish()


def write_names(folder, triplets):
    """Lists the mixtures to be scored, as the files of an earlier run may lie beside theirs; gives the folder.

    Raises:
        UserError: a name cannot be listed.
    """
    found = {}
    for triplet in triplets:
        if triplet.name.split() != [triplet.name]:
            raise UserError(f"{triplet.mixture}: there are blanks in its name; rename it")
        if triplet.name in found:
            raise UserError(
                f"{triplet.mixture}: has the name of {found[triplet.name]}, so one output would replace the other's;"
                " extract them one --data_folder at a time, under different --exp_name"
            )
        found[triplet.name] = triplet.mixture
    names = sorted(triplet.name for triplet in triplets)
    write_text(names_path(folder, FLAGS.set, talkers=1), "".join(name + "\n" for name in names))
    read_names(folder, FLAGS.set, talkers=1)  # refuses now what it would refuse after the extraction
    return folder


def extract(extractor, mixture, triplet):
    """(estimate [samples] of the talker of a triplet's enrolments in a mixture [samples], confidence)."""
    embedding = extractor.embed_files(triplet.enrolments, FLAGS.sample_rate)
    estimate = extractor.estimate(mixture, embedding)
    confidence = extractor.confidence_in_windows(mixture, estimate, embedding, FLAGS.sample_rate)
    return match_level(estimate, mixture, FLAGS.level), confidence


def genders_of_set():
    """{talker: "male" or "female"} by --genders_file, or tables that are found beside the corpora of the set, or None.

    Raises:
        UserError: settings.json of a set is damaged.
    """
    if FLAGS.genders_file:
        return read_genders(FLAGS.genders_file)
    genders = {}
    for folder in set_folders(FLAGS.set):
        settings = os.path.join(folder, "settings.json")
        if not os.path.exists(settings):
            continue
        try:
            with open(settings, encoding="utf-8") as file:
                corpus_folder = json.load(file).get("corpus_folder", "")
        except (ValueError, AttributeError) as error:
            raise UserError(f"{settings}: not understood ({brief(error)}); restore it or move it away") from error
        path = find_genders(corpus_folder) if os.path.isdir(corpus_folder) else ""
        genders |= read_genders(path) if path else {}
    return genders or None


def extract_recording(source):
    """Extracts one talker from one recording, as nn/separate.py does."""
    if not (FLAGS.mixture and FLAGS.enrolment and FLAGS.output):
        raise UserError("--mixture, --enrolment and --output belong together; one is missing")
    if not FLAGS.output.lower().endswith(".wav"):
        raise UserError(f"--output {FLAGS.output}: a wav is written; let its name end in .wav")
    settings = model_settings(source)  # refuses flags that disagree
    told = {name: settings[name] for name in ("causal", "mask")}
    separator = Separator([source], level=FLAGS.level, grouping="kmeans", told=told)
    voice = separator.enrol(FLAGS.enrolment)
    make_writable_directory(os.path.dirname(os.path.abspath(FLAGS.output)))
    done = separate_file(separator, FLAGS.mixture, {(None, 0): FLAGS.output}, voice=voice)
    info = wav_info(FLAGS.output)
    print(f"{FLAGS.output}: {info.seconds:.1f} s at {info.sample_rate} Hz, confidence {done.confidences[0]:.3f}")
