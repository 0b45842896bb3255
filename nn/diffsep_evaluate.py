r"""Separates or enhances the recordings of a set by diffusion, and scores them.

    python nn/diffsep_evaluate.py --resume_model exp/diffsep/models/test/best --test --wsj0_mix data/wsj0_mix
    python nn/diffsep_evaluate.py --resume_model CHECKPOINT --splits test,libri-clean -N 10 --num_workers 2
    python nn/diffsep_evaluate.py --resume_model __no_proc__ --test          scores the mixtures themselves

Writes RESULTS/RUN_CHECKPOINT_N-30_snr-0.5_corrstep-1_denoise-True_schedule-None/SPLIT.json, an entry a recording,
SPLIT_summary.json, the means, and of the first --save_n recordings fig/SPLIT/evo_NNNN.pdf, the way of the reverse
process, and wav/SPLIT/NNNN.mix.wav, .enh0.wav, .tgt0.wav, ... Killed at any moment, the same command goes on where it
was. Noise depends on --seed and the number of the recording alone, so results do not depend on the processes.
"""

import dataclasses
import functools
import json
import multiprocessing
import os
import time

from feat.base.script import run_script

import numpy as np
from absl import flags

from feat.base.files import UserError, make_writable_directory, write_text
from feat.base.parallel import parallel_map
from feat.batches.diffsep import SPLITS, Corpora
from feat.signals.audio import write_float
from nn.checkpoints import ours as checkpoint
from nn.checkpoints import readers
from nn.scoring import metrics
from nn.systems.diffsep.flags import define_data_flags, define_sampling_flags, sampling_of_flags
from nn.systems.diffsep.results import UNPROCESSED, file_mean, folder_name, run_name, write_results

PEAK = 0.95  # of the loudest of the signals of a recording
MATCHED = ("si_sdr", "si_sir", "si_sar", "si_sdri")  # whose lists stand in another list, as in the reference
ENTRIES = (*MATCHED, "pesq", "stoi", "nfe", "runtime", "len_s")


@dataclasses.dataclass(frozen=True)
class Options:
    """What is evaluated and how; travels to every process.

    Attributes:
        source: checkpoint, or UNPROCESSED.
        corpora: Corpora.
        sampling: (name, value) pairs of nn.systems.diffsep.recordings.Sampling.
        folder: of the results.
        enhance: score the first source alone.
        pesq_mode: "nb" or "wb".
        stoi_extended: ESTOI rather than STOI.
        save_n: recordings of every split whose figures and audio are saved; -1: all.
        seed: of the noise.
        devices: numbers of the GPUs that processes take in turn; none: as TensorFlow finds them.
        workers: processes that share the cores.
    """

    source: str
    corpora: Corpora
    sampling: tuple
    folder: str
    enhance: bool = False
    pesq_mode: str = "nb"
    stoi_extended: bool = True
    save_n: int = 10
    seed: int = 0
    devices: tuple = ()
    workers: int = 1


def evaluate(options, split, limit=0, num_workers=1):
    """Evaluates a split, or what is missing of it; gives the means.

    Args:
        limit: recordings at most; 0: all.

    Raises:
        UserError: the data are not there, or do not fit the checkpoint.
    """
    mixtures = options.corpora.open(split).first(limit)
    records = os.path.join(options.folder, "records", split)
    for folder in (options.folder, records):
        make_writable_directory(folder)
    _require_same(options)
    missing = [i for i in range(len(mixtures)) if not _whole(options, records, split, i)]
    workers = min(num_workers or os.cpu_count() or 1, max(1, len(missing)))
    options = dataclasses.replace(options, workers=workers)
    parallel_map(functools.partial(evaluate_one, options, split), missing, workers, f"evaluate {split}")
    results = {str(i): _read_record(records, i) for i in range(len(mixtures))}
    return write_results(options.folder, split, results)


def evaluate_one(options, split, index):
    """Evaluates one recording and writes its record, last, with its figures and audio."""
    engine, mixtures = _engine(options), _mixtures(options.corpora, split)
    mixture, references = mixtures.read(index)
    entry, signals = engine.score(mixture, references, index, states=_saved(options, index))
    entry = {"batch_idx": index, "name": mixtures.names[index], **entry}
    if signals is not None:
        _save(options, split, index, signals, mixtures.sample_rate, entry)
    path = os.path.join(options.folder, "records", split, f"{index:06d}.json")
    write_text(path, json.dumps(entry) + "\n")


class Engine:
    """What separates and scores recordings.

    Args:
        options: Options.
    """

    def __init__(self, options):
        _share_machine(options)
        from models.diffsep.sampling import file_key  # only now, when TensorFlow knows its devices
        from nn.systems.diffsep.recordings import Reverse, Sampling, Trained

        self.options = options
        self.key = functools.partial(file_key, options.seed)
        self.reverse = self.way = None
        if options.source != UNPROCESSED:
            trained = Trained(options.source)
            self.reverse = Reverse(trained, Sampling(**dict(options.sampling))).prepare()
            if options.save_n:
                self.way = Reverse(trained, Sampling(**dict(options.sampling)), states=True)

    def score(self, mixture, references, index, states=False):
        """Separates and scores a recording.

        Args:
            mixture: [samples].
            references: [sources, samples].
            index: of the recording, for its noise.
            states: also give the way.

        Returns:
            (entry, signals): the entry of the results; {"mixture", "estimates", "references", "states"} in the measure
            of the mixture, the estimates in the order of the references, or None where `states` is not asked for.
        """
        from models.diffsep.sde import normalise

        rate = self.options.corpora.sample_rate
        seconds = len(mixture) / rate
        scaled, references, _ = normalise(mixture[None], references[None])
        scaled, references = np.asarray(scaled), np.asarray(references)[0]
        way, calls = None, 0
        if states and self.way is not None:
            self.way.prepare()
        start = time.perf_counter()
        if self.reverse is None:
            estimates = np.repeat(scaled, len(references), axis=0)
        elif states:
            estimates, way = (x[:, 0] if x.ndim == 4 else x[0] for x in self.way(scaled, [self.key(index)]))
            calls = self.way.evaluations
        else:
            estimates, calls = self.reverse(scaled, [self.key(index)])[0], self.reverse.evaluations
        spent = time.perf_counter() - start
        entry, order = score_estimates(scaled[0], estimates, references, rate, self.options)
        entry |= {"nfe": calls, "runtime": round(spent, 4), "len_s": seconds}
        if not states:
            return entry, None
        way = way if way is None else way[:, order]
        return entry, dict(mixture=scaled[0], estimates=estimates[order], references=references, states=way)


def _share_machine(options):
    """In one of several processes: its part of the cores, and its GPU."""
    import tensorflow as tf

    if multiprocessing.parent_process() is None and not options.devices:
        return
    number = (multiprocessing.current_process()._identity or (1,))[0] - 1
    if options.workers > 1:
        tf.config.threading.set_intra_op_parallelism_threads(max(1, (os.cpu_count() or 1) // options.workers))
        tf.config.threading.set_inter_op_parallelism_threads(1)
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)  # others are on it too
    if options.devices:
        gpus, wanted = tf.config.list_physical_devices("GPU"), options.devices[number % len(options.devices)]
        if not wanted.isdecimal() or int(wanted) >= len(gpus):
            raise UserError(f"--devices {wanted}: {len(gpus)} GPU(s) are here, numbered from 0")
        tf.config.set_visible_devices([gpus[int(wanted)]], "GPU")


def score_estimates(mixture, estimates, references, sample_rate, options):
    """Scores of one recording: {one of ENTRIES: nested lists}, and the order of the estimates.

    Estimates are matched by the best sum of SI-SIR; with `enhance` the first source alone is kept.
    """
    found, order = metrics.scale_invariant_scores(estimates, references)
    before, _ = metrics.scale_invariant_scores(np.tile(mixture, (len(references), 1)), references, order_by=None)
    found["si_sdri"] = found["si_sdr"] - before["si_sdr"]
    kept = slice(1 if options.enhance else None)
    estimates, references = estimates[order][kept], references[kept]
    entry = {name: [_plain(found[name][kept])] for name in MATCHED}
    entry["pesq"] = _plain(metrics.pesq(estimates, references, sample_rate, options.pesq_mode))
    entry["stoi"] = _plain(metrics.estoi(estimates, references, sample_rate, options.stoi_extended))
    return entry, order


def common_gain(signals):
    """[signals] brought by one factor to PEAK, that of the loudest sample of all."""
    peak = max(np.max(np.abs(signal)) for signal in signals)
    return [signal * (PEAK / max(peak, 1e-12)) for signal in signals]


def audio_names(index, sources):
    """Names of the wavs of a recording: mixture, estimates, targets."""
    kinds = ["mix", *(f"enh{c}" for c in range(sources)), *(f"tgt{c}" for c in range(sources))]
    return [f"{index:04d}.{kind}.wav" for kind in kinds]


def _plain(values):
    """Numbers that JSON can hold; None where a score is not defined."""
    return [None if np.isnan(value) else float(value) for value in values]


def _save(options, split, index, signals, sample_rate, entry):
    from nn.systems.diffsep.figures import evolution_figure, save

    estimates, references = signals["estimates"], signals["references"]
    every = common_gain([signals["mixture"], *estimates, *references])
    for name, signal in zip(audio_names(index, len(references)), every, strict=True):
        write_float(os.path.join(options.folder, "wav", split, name), signal, sample_rate)
    if signals["states"] is not None:
        title = f"{entry['name']}: SI-SDR {file_mean(entry['si_sdr']):.1f} dB, {entry['nfe']} calls of the network"
        figure = evolution_figure(signals["states"], references, sample_rate, title)
        save(figure, _figure_path(options, split, index))


def _figure_path(options, split, index):
    return os.path.join(options.folder, "fig", split, f"evo_{index:04d}.pdf")


def _saved(options, index):
    return options.save_n < 0 or index < options.save_n


def _whole(options, records, split, index):
    """Whether a recording was evaluated, and saved if it should be."""
    if not os.path.exists(os.path.join(records, f"{index:06d}.json")):
        return False
    if not _saved(options, index):
        return True
    first = os.path.join(options.folder, "wav", split, audio_names(index, 1)[0])
    return os.path.exists(first) and (
        options.source == UNPROCESSED or os.path.exists(_figure_path(options, split, index))
    )


def _read_record(records, index):
    with open(os.path.join(records, f"{index:06d}.json"), encoding="utf-8") as file:
        return json.load(file)


def _require_same(options):
    """Notes what the results depend on. Raises UserError if the folder holds those of something else."""
    settings = dataclasses.asdict(options)
    for name in ("folder", "save_n", "devices", "workers"):
        del settings[name]
    settings["sampling"] = dict(settings["sampling"])
    if options.source != UNPROCESSED:
        settings["source"] = readers.fingerprint(options.source)
    path = os.path.join(options.folder, "options.json")
    text = json.dumps(settings, indent=1) + "\n"
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            present = file.read()
        if present != text:
            theirs = _settings(present)
            differing = [name for name, value in settings.items() if theirs.get(name) != _settings(text)[name]]
            raise UserError(
                f"{options.folder}: holds results with another {' and '.join(differing) or 'set of options'};"
                " give another --output_folder or --tag, or remove it"
            )
    write_text(path, text)


def _settings(text):
    try:
        return json.loads(text)
    except ValueError:
        return {}


@functools.lru_cache(1)
def _engine(options):
    return Engine(options)


@functools.lru_cache(4)
def _mixtures(corpora, split):
    return corpora.open(split)


# Script -------------------------------------------------------------------------------------------


def define_flags():
    define_data_flags()
    define_sampling_flags()
    flags.DEFINE_string("resume_model", None, f"checkpoint, or {UNPROCESSED} to score the mixtures themselves")
    flags.DEFINE_string("output_folder", "results", "takes the result folders")
    flags.DEFINE_string("tag", None, "start of the result folder's name, instead of run and checkpoint")
    flags.DEFINE_list("splits", [], f"any of {', '.join(SPLITS[1:])}")
    flags.DEFINE_alias("split", "splits")
    flags.DEFINE_bool("val", False, "the split val")
    flags.DEFINE_bool("test", False, "the split test")
    flags.DEFINE_integer("limit", 0, "recordings of every split at most; 0: all", lower_bound=0, short_name="l")
    flags.DEFINE_integer("save_n", 10, "recordings whose figures and audio are saved; -1: all", lower_bound=-1)
    flags.DEFINE_bool("enhance", None, "noisy speech, of which the speech alone is scored; default: as trained")
    flags.DEFINE_enum("pesq_mode", "nb", ["nb", "wb"], "narrow or wide band")
    flags.DEFINE_bool("stoi_no_extended", False, "STOI rather than ESTOI")
    flags.DEFINE_integer("seed", 0, "of the noise, and of the division of noisy speech")
    flags.DEFINE_integer("num_workers", 1, "processes; 0: one for every core", lower_bound=0, short_name="w")
    flags.DEFINE_list("devices", [], "numbers of the GPUs that processes take in turn", short_name="d")


def options_of_flags(values):
    """Options of the flags. Raises UserError for those that do not go together, or with the checkpoint."""
    source = values.resume_model
    if not source:
        raise UserError(f"--resume_model is missing: a checkpoint, or {UNPROCESSED}")
    sampling = sampling_of_flags(values)
    if source == UNPROCESSED:
        rate, sources, enhance = values.sample_rate, values.n_speakers, bool(values.enhance)
        folder = values.tag or "mix"
        if enhance and not values["sample_rate"].present:
            rate = 16000
    else:
        from nn.systems.diffsep.recordings import Sampling, describe

        known = describe(source)
        rate, sources, enhance = known["sample_rate"], known["sources"], known["enhancement"]
        for flag, own in (("sample_rate", rate), ("n_speakers", sources), ("enhance", enhance)):
            if values[flag].present and values[flag].value not in (None, own):
                raise UserError(
                    f"{source}: trained with --{flag} {own}, but --{flag} {values[flag].value} was given;"
                    " leave it out, or give another checkpoint"
                )
        chosen = Sampling(**sampling).filled(known["config"])
        sampling = dataclasses.asdict(chosen)
        folder = folder_name(
            values.tag or run_name(checkpoint.resolve(source)), chosen.steps, chosen.snr, chosen.corrector_steps,
            chosen.denoise, chosen.schedule, **chosen.unusual(),
        )  # fmt: skip
    if values.pesq_mode == "wb" and rate != 16000:
        raise UserError(f"--pesq_mode wb: needs 16000 Hz, the recordings have {rate}; leave it out")
    corpora = Corpora(
        "enhancement" if enhance else "separation", values.wsj0_mix, values.vctk_demand, values.librimix, sources, rate,
        values.mode, values.resample, values.seed if enhance else 0,
    )  # fmt: skip
    return Options(
        source, corpora, tuple(sampling.items()), os.path.join(values.output_folder, folder), enhance, values.pesq_mode,
        not values.stoi_no_extended, values.save_n, values.seed, tuple(values.devices),
    )  # fmt: skip


def splits_of_flags(values):
    """The splits asked for, once each; test if none is."""
    splits = [*values.splits, *(["val"] if values.val else []), *(["test"] if values.test else [])]
    unknown = [split for split in splits if split not in SPLITS]
    if unknown:
        raise UserError(f"--splits {unknown[0]}: should be some of {', '.join(SPLITS[1:])}")
    return list(dict.fromkeys(splits)) or ["test"]


def format_summary(split, summary):
    """A line on the means of a split."""
    parts = [f"{summary['number']} recordings"]
    for name, unit in (
        ("si_sdr", " dB"),
        ("si_sdri", " dB"),
        ("si_sir", " dB"),
        ("si_sar", " dB"),
        ("pesq", ""),
        ("stoi", ""),
    ):
        if summary.get(name) is not None:
            parts.append(f"{name.upper().replace('_', '-')} {summary[name]:.3f}{unit}")
    if summary.get("nfe"):
        parts.append(f"{summary['nfe']:.0f} calls, {summary['runtime'] / summary['len_s']:.2f} s for a second")
    return f"{split}: {', '.join(parts)}"


def main(_):
    values = flags.FLAGS
    options = options_of_flags(values)
    for split in splits_of_flags(values):
        summary = evaluate(options, split, values.limit, values.num_workers)
        print(f"{options.folder}, {format_summary(split, summary)}")


if __name__ == "__main__":
    define_flags()
    run_script(main)
