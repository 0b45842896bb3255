"""Scores folders of estimates against their references, and writes tables and reports."""

import csv
import functools
import io
import json
import os
import textwrap
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from feat.base.files import UserError, write_text
from feat.base.parallel import parallel_map
from feat.corpora.lists import mixture_paths, read_names
from feat.corpora.scp import read_scp
from feat.signals.audio import read_mono
from nn.scoring import metrics, score_groups

MIXTURE = "mixture"  # label of the row of the unprocessed mixture
DEFAULT_METRICS = ("si_sdr", "sdr", "pesq", "estoi")
SOURCES = ("auto", "bin", "wav")
FRAME_ACCURACIES = ("frame_accuracy", "frame_accuracy_weighted")
SHARES = (*FRAME_ACCURACIES, "confusion")
HEADINGS = {
    "si_sdr": "SI-SDR",
    "si_sdri": "SI-SDRi",
    "snr": "SNR",
    "snri": "SNRi",
    "sdr": "SDR",
    "sdri": "SDRi",
    "pesq": "PESQ",
    "estoi": "ESTOI",
    "confusion": "confused",
    "frame_accuracy": "frames right",
    "frame_accuracy_weighted": "frames weighted",
}


@dataclass(frozen=True)
class Dataset:
    """Where references and mixtures lie, and what they are.

    Attributes:
      data_folder, wav_list_folder, set_name: of the layout of WSJ0-2mix.
      talkers: in every mixture.
      sample_rate: Hz.
      references: {key: path} for every talker, of .scp lists; none of other layouts.
      mixtures: {key: path}, empty if they are not known.
    """

    data_folder: str
    wav_list_folder: str
    set_name: str
    talkers: int
    sample_rate: int
    references: tuple[Mapping[str, str], ...] = ()
    mixtures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class System:
    """A folder of estimates of one kind, "bin" or "wav", and the name of its row; or ("scp") lists of them."""

    label: str
    folder: str
    source: str
    tables: tuple[Mapping[str, str], ...] = ()

    def paths(self, name: str, talkers: int) -> list[str]:
        """The files that hold the estimates of the mixture `name`."""
        if self.source == "scp":
            return [table[name] for table in self.tables]
        endings = [".bin"] if self.source == "bin" else [f"_s{k + 1}.wav" for k in range(talkers)]
        return [os.path.join(self.folder, name + ending) for ending in endings]


@dataclass(frozen=True)
class UtteranceScores:
    """How one system did on one mixture.

    Attributes:
      outputs: for every talker, the number (from 1) of the output matched to it; none for the mixture.
      scores: {metric: float64 [talkers]}; NaN where the metric is not defined.
      frame_accuracy: {one of FRAME_ACCURACIES: share}, empty if the assignment was not saved.
    """

    outputs: tuple[int, ...]
    scores: dict[str, np.ndarray]
    frame_accuracy: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """Everything that was scored: for every name, in order, {label: UtteranceScores}, mixture first."""

    dataset: Dataset
    systems: list[System]
    names: list[str]
    utterances: list[dict[str, UtteranceScores]]
    genders: Mapping[str, str] | None = None
    fixed_order: bool = False  # outputs stand for the references that they come with


def evaluate(
    folders: Mapping[str, str],
    data_folder: str = "",
    wav_list_folder: str = "",
    set_name: str = "tt",
    talkers: int = 2,
    sample_rate: int = 8000,
    metric_names: Iterable[str] = DEFAULT_METRICS,
    source: str = "auto",
    num_workers: int = 0,
    genders: Mapping[str, str] | None = None,
    references: Iterable[str] = (),
    mixtures: str = "",
    roots: Iterable[str] = (),
) -> Evaluation:
    """Scores several folders of estimates of the same mixtures.

    Args:
      folders: {label: folder of estimates, or .scp lists of them, one for every talker, by commas}.
      data_folder: references and mixtures in the layout of WSJ0-2mix; for wav estimates.
      wav_list_folder: holds the list of the set; for wav estimates. If empty, all .bin files are scored.
      set_name: tr, cv or tt.
      talkers: talkers in every mixture.
      sample_rate: of the signals, in Hz.
      metric_names: names in `metrics.METRICS`.
      source: "bin" or "wav" files, or "auto": .bin files if a folder has both.
      num_workers: processes; 0 for all cores, 1 for none beside this one. More than one start a fresh
        interpreter each, so that a calling script needs its `if __name__ == "__main__"`.
      genders: {talker: "male" or "female"}, for a table of them; the talkers are those in the mixtures' names.
      references: .scp lists, one for every talker, for estimates of .scp lists.
      mixtures: .scp list, for what is gained over the mixture; empty: not known.
      roots: where the files of .scp lists lie, see `feat.corpora.scp.located`.

    Returns:
      The scores, in the order of the list, whatever `num_workers` is.

    Raises:
      UserError: files are missing, damaged or do not belong together, or an argument is none of the above.
    """
    metric_names = tuple(metric_names)
    require_scorable(metric_names, sample_rate, talkers, num_workers)
    roots = tuple(roots)
    listed = tuple(read_scp(path, roots) for path in references)
    dataset = Dataset(
        data_folder, wav_list_folder, "" if listed else set_name, talkers, sample_rate, listed,
        read_scp(mixtures, roots) if mixtures else {},
    )  # fmt: skip
    systems = [_find_system(label, folder, source, dataset, roots) for label, folder in folders.items()]
    names = _mixture_names(systems, dataset)
    if genders is not None:
        score_groups.label_talkers(names, talkers, genders=genders)  # raises if names do not tell
    for name in names:
        for system in systems:
            _require_files(system, name, dataset)
    score_name = functools.partial(_score_utterance, systems, dataset, metric_names)
    return Evaluation(dataset, systems, names, parallel_map(score_name, names, num_workers, "score"), genders)


def evaluate_folder(folder: str, label: str = "estimates", **options) -> Evaluation:
    """Scores one folder of estimates; `options` are those of `evaluate`."""
    return evaluate({label: folder}, **options)


def summarize(evaluation: Evaluation, oracle: str = "") -> dict:
    """Means over utterances and talkers with their numbers of failures, ready for JSON.

    Args:
      evaluation: what `evaluate` returned.
      oracle: label of the system whose frames were put in order with the references, if any; its SI-SDRi
        is what perfect grouping would give.
    """
    systems = []
    for label in evaluation.utterances[0]:
        scored = [utterance[label] for utterance in evaluation.utterances]
        columns = {m: np.concatenate([each.scores[m] for each in scored]) for m in scored[0].scores}
        accuracies = {}
        if any(each.frame_accuracy for each in scored):
            accuracies = {
                m: np.array([each.frame_accuracy.get(m, np.nan) for each in scored]) for m in FRAME_ACCURACIES
            }
        columns |= accuracies
        systems.append(
            {
                "label": label,
                "folder": next((s.folder for s in evaluation.systems if s.label == label), None),
                "means": {metric: score_groups.mean(values) for metric, values in columns.items()},
                "failures": {metric: int(np.isnan(values).sum()) for metric, values in columns.items()},
            }
        )
    reported = {metric for system in systems for metric in system["means"]}
    return {
        "set": evaluation.dataset.set_name,
        "talkers": evaluation.dataset.talkers,
        "fixed_order": evaluation.fixed_order,
        "sample_rate": evaluation.dataset.sample_rate,
        "utterances": len(evaluation.names),
        "systems": systems,
        "groups": _groups(evaluation),
        "oracle_bound": _oracle_bound(systems, oracle),
        "definitions": {m: text for m, text in metrics.DEFINITIONS.items() if m in reported},
    }


def format_table(summary: dict) -> str:
    """The summary as plain text: the table, the oracle bound, and what every number means."""
    metric_names = list(summary["definitions"])
    rows = [["system", *(HEADINGS[m] for m in metric_names), "not scored"]]
    for system in summary["systems"]:
        cells = [_cell(metric, system["means"].get(metric)) for metric in metric_names]
        failures = [f"{HEADINGS[m]} {count}" for m, count in system["failures"].items() if count]
        rows.append([system["label"], *cells, ", ".join(failures) or "-"])
    one = summary["talkers"] == 1
    talkers = "with one wanted talker" if one else f"of {summary['talkers']} talkers"
    of_set = f"set {summary['set']}, " if summary["set"] else ""
    title = (
        f"{summary['utterances']} mixtures {talkers}, {of_set}{summary['sample_rate']} Hz;"
        f" means over mixtures{'' if one else ' and talkers'}"
    )
    lines = [title, "", *_align(rows)]
    if bound := summary["oracle_bound"]:
        lines += ["", f"Oracle bound: {bound['si_sdri']:.2f} dB SI-SDRi ({bound['label']}, same mixtures)."]
        for system in summary["systems"]:
            reached = system["means"].get("si_sdri")
            if system["label"] not in (MIXTURE, bound["label"]) and reached is not None:
                gap_db = bound["si_sdri"] - reached
                side = "above" if gap_db < 0 else "below"
                lines.append(f"{system['label']} reaches {reached:.2f} dB, {abs(gap_db):.2f} dB {side} it.")
    lines += _group_lines(summary, [metric for metric in metric_names if metric not in FRAME_ACCURACIES])
    order = "" if one else "Outputs are in the order with the largest sum of SI-SDR. "
    if summary["fixed_order"]:
        order = "Outputs are in the order that they came in. "
    lines += ["", order + "What the numbers mean:"]
    meanings = [f"{HEADINGS[metric]}: {text}." for metric, text in summary["definitions"].items()]
    meanings.append("not scored: values that are not defined (silent or unusable signals), not in the means.")
    for meaning in meanings:
        lines += textwrap.wrap(meaning, 100, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"


def format_csv(evaluation: Evaluation) -> str:
    """All scores as CSV: a line for every utterance, system and talker.

    `output` is the number of the output matched to the talker, empty for the mixture.
    """
    scored = [each for utterance in evaluation.utterances for each in utterance.values()]
    metric_names = list(dict.fromkeys(metric for each in scored for metric in each.scores))
    accuracies = FRAME_ACCURACIES if any(each.frame_accuracy for each in scored) else ()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["utterance", "system", "talker", "output", *metric_names, *accuracies])
    for name, utterance in zip(evaluation.names, evaluation.utterances, strict=True):
        for label, each in utterance.items():
            for talker in range(evaluation.dataset.talkers):
                output = each.outputs[talker] if each.outputs else ""
                values = [each.scores[metric][talker] if metric in each.scores else np.nan for metric in metric_names]
                values += [each.frame_accuracy.get(metric, np.nan) for metric in accuracies]
                numbers = [f"{value:.6f}" for value in values]
                writer.writerow([name, label, f"s{talker + 1}", output, *numbers])
    return text.getvalue()


def write_report(evaluation: Evaluation, output_folder: str, oracle: str = "") -> str:
    """Writes scores.csv, summary.json and table.txt; returns the text of the table."""
    summary = summarize(evaluation, oracle)
    table = format_table(summary)
    write_text(os.path.join(output_folder, "scores.csv"), format_csv(evaluation))
    write_text(os.path.join(output_folder, "summary.json"), json.dumps(summary, indent=2) + "\n")
    write_text(os.path.join(output_folder, "table.txt"), table)
    return table


# Reading ----------------------------------------------------------------------------------------------


class Signals(NamedTuple):
    """One mixture as a system left it, float32."""

    references: np.ndarray  # [talkers, samples]
    estimates: np.ndarray  # [talkers, samples]
    mixture: np.ndarray | None  # [samples]; None if it is not known

    def until(self, samples):
        """The same up to so many samples."""
        return Signals(*(None if signal is None else signal[..., :samples] for signal in self))


def read_bin(path: str, talkers: int = 2) -> Signals:
    """Reads the .bin file of one mixture. Raises UserError if it is missing, cut short or has other rows."""
    _require_whole_bin(path, talkers)
    references, estimates, mixtures = np.split(np.fromfile(path, "<f4").reshape(3 * talkers, -1), 3)
    # The one thing that tells a file cut at a multiple of the row count, or another number of talkers.
    if not all(np.array_equal(mixtures[0], mixture) for mixture in mixtures):
        raise UserError(
            f"{path}: the last {talkers} of {3 * talkers} rows differ, each should be the mixture;"
            f" the file is damaged or not of {talkers} talkers: write it again, or mend --talkers"
        )
    return Signals(references, estimates, mixtures[0])


def _read_wavs(estimate_paths, reference_paths, mixture_path, sample_rate):
    """Signals of one mixture from its wavs. Raises UserError if one cannot be used or lengths differ."""
    mixture = read_mono(mixture_path, sample_rate)

    def read(path):
        samples = read_mono(path, sample_rate)
        if len(samples) != len(mixture):
            raise UserError(
                f"{path}: {len(samples)} samples, {mixture_path} has {len(mixture)}; make the shorter again"
            )
        return samples

    references = np.stack([read(path) for path in reference_paths])
    estimates = np.stack([read(path) for path in estimate_paths])
    return Signals(references, estimates, mixture)


def _read_listed(estimate_paths, reference_paths, mixture_paths, sample_rate):
    """Signals of one mixture of .scp lists, all up to the end of the shortest."""

    def read(paths):
        signals = [read_mono(path, sample_rate) for path in paths]
        return np.stack([signal[: min(map(len, signals))] for signal in signals])

    signals = [read(reference_paths), read(estimate_paths), read(mixture_paths)[0] if mixture_paths else None]
    return Signals(*signals).until(min(signal.shape[-1] for signal in signals if signal is not None))


def _read(system, name, dataset):
    """Signals of one mixture, from wherever the system keeps them."""
    paths = system.paths(name, dataset.talkers)
    if system.source == "bin":
        return read_bin(*paths, dataset.talkers)
    if system.source == "scp":
        known = _dataset_paths(name, dataset)
        return _read_listed(paths, known[: dataset.talkers], known[dataset.talkers :], dataset.sample_rate)
    *reference_paths, mixture_path = _dataset_paths(name, dataset)
    return _read_wavs(paths, reference_paths, mixture_path, dataset.sample_rate)


def _require_same(name, systems, signals):
    """Raises UserError unless all systems worked on the same mixture."""
    for system, other in zip(systems[1:], signals[1:], strict=True):
        for kind in ("references",) if signals[0].mixture is None else ("references", "mixture"):
            first, second = getattr(signals[0], kind), getattr(other, kind)
            # One of them may have been through 16 bits.
            if first.shape != second.shape or not np.allclose(first, second, rtol=0, atol=1e-4):
                raise UserError(
                    f"{name}: {systems[0].folder} and {system.folder} hold different {kind}"
                    f" ({first.shape[-1]} and {second.shape[-1]} samples); score them in separate runs"
                )


def require_scorable(metric_names, sample_rate, talkers, num_workers):
    """Raises UserError for arguments that nothing can be scored with."""
    for metric in metric_names:
        if metric not in metrics.METRICS:
            raise UserError(f"--metrics {metric}: should be some of {', '.join(metrics.METRICS)}")
    if "pesq" in metric_names and sample_rate not in metrics.PESQ_MODES:
        rates = " and ".join(map(str, metrics.PESQ_MODES))
        raise UserError(f"--sample_rate {sample_rate}: PESQ is defined at {rates} Hz; leave it out of --metrics")
    if talkers < 1 or num_workers < 0:
        raise UserError(f"--talkers {talkers} --num_workers {num_workers}: should be 1 and 0 at least")


def _find_system(label, folder, source, dataset, roots):
    """System of a folder, or of .scp lists. Raises UserError if it holds no estimates."""
    if label == MIXTURE:
        raise UserError(f"--estimates {label}={folder}: {MIXTURE!r} is the row of the input; relabel it")
    lists = folder.split(",")
    if all(path.endswith(".scp") for path in lists):
        for flag, count in (("--estimates", len(lists)), ("--references", len(dataset.references))):
            if count != dataset.talkers:
                raise UserError(
                    f"{flag}: {count} .scp list(s), one for every talker is needed, by commas; mend it, or --talkers"
                    f" {dataset.talkers}"
                )
        return System(label, folder, "scp", tuple(read_scp(path, roots) for path in lists))
    if dataset.references:
        raise UserError(f"--estimates {folder}: no .scp list, but --references are; give such lists of both")
    if source not in SOURCES:
        raise UserError(f"--source {source}: should be one of {', '.join(SOURCES)}")
    try:
        files = os.listdir(folder)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; --estimates takes folders, or label=folder") from error
    endings = {"bin": ".bin", "wav": "_s1.wav"}
    for kind, ending in endings.items():
        if source in ("auto", kind) and any(file.endswith(ending) for file in files):
            return System(label, folder, kind)
    wanted = " or ".join(f"<name>{ending}" for kind, ending in endings.items() if source in ("auto", kind))
    raise UserError(f"{folder}: holds no {wanted}; separate the set first, or mend --source")


def _mixture_names(systems, dataset):
    """Names to score: those of the list, or without one those of which any system has a .bin."""
    if dataset.references:
        return list(dataset.references[0])
    if dataset.wav_list_folder:
        return read_names(dataset.wav_list_folder, dataset.set_name, dataset.talkers)
    names = set()
    for system in systems:
        if system.source == "wav":
            raise UserError(
                f"{system.folder}: wav estimates need --data_folder and --wav_list_folder, where the references are"
            )
        names |= {file[: -len(".bin")] for file in os.listdir(system.folder) if file.endswith(".bin")}
    return sorted(names)


def _require_files(system, name, dataset):
    """Raises UserError if a file of the mixture is missing or cut short, before hours are spent."""
    if system.source == "bin":
        _require_whole_bin(*system.paths(name, dataset.talkers), dataset.talkers)
        return
    if system.source == "scp":
        lists = [(system.folder, table) for table in system.tables]
        lists += [("--references", table) for table in dataset.references]
        lists += [("--mixtures", dataset.mixtures)] if dataset.mixtures else []
        for where, table in lists:
            if name not in table:
                raise UserError(f"{where}: {name} is in the references, but not there; give lists of the same keys")
    for path in system.paths(name, dataset.talkers):
        _require_estimate(path)
    for path in _dataset_paths(name, dataset):
        if not os.path.exists(path):
            flag = "--scp_root" if dataset.references else "--data_folder"
            raise UserError(f"{path}: no such file; check {flag}, or that the list belongs to it")


def _require_whole_bin(path, talkers):
    _require_estimate(path)
    size, row_bytes = os.path.getsize(path), 4 * 3 * talkers
    if size == 0 or size % row_bytes:
        raise UserError(
            f"{path}: {size} bytes are not {3 * talkers} equal rows of float32; the file is cut short or not"
            f" of {talkers} talkers: write it again, or mend --talkers"
        )


def _require_estimate(path):
    if not os.path.exists(path):
        raise UserError(f"{path}: no such file; separate the whole set, or take it out of the list")


def _dataset_paths(name, dataset):
    """Paths of s1, s2, ... and the mixture, if that is known."""
    if dataset.references:
        mixture = [dataset.mixtures[name]] if dataset.mixtures else []
        return [table[name] for table in dataset.references] + mixture
    if not dataset.data_folder:
        raise UserError("--data_folder: missing; wav estimates are scored against the references in it")
    paths = mixture_paths(dataset.data_folder, dataset.set_name, name, dataset.talkers, sample_rate=dataset.sample_rate)
    return list(paths.values())


# Scoring ----------------------------------------------------------------------------------------------


def _score_utterance(systems, dataset, metric_names, name):
    """{label: UtteranceScores} of one mixture, the unprocessed mixture first."""
    signals = [_read(system, name, dataset) for system in systems]
    if dataset.references:
        samples = min(each.estimates.shape[1] for each in signals)
        signals = [each.until(samples) for each in signals]
    _require_same(name, systems, signals)
    references, _, mixture = signals[0]

    def score(estimates):
        return metrics.score(estimates, references, dataset.sample_rate, metric_names)

    utterance = {}
    if mixture is not None:
        mixture_scores = score(np.tile(mixture, (dataset.talkers, 1)))
        utterance[MIXTURE] = UtteranceScores((), metrics.with_improvements(mixture_scores, mixture_scores), {})
    for system, (_, estimates, _) in zip(systems, signals, strict=True):
        order = metrics.best_permutation(estimates, references)
        scores = score(estimates[order])
        if mixture is not None:
            scores = metrics.with_improvements(scores, mixture_scores)
        if mixture is not None and dataset.talkers == 1:
            scores["confusion"] = metrics.confusion(estimates, references, mixture)
        utterance[system.label] = UtteranceScores(
            tuple(int(k) + 1 for k in order),
            scores,
            _frame_accuracy(os.path.join(system.folder, f"{name}_assign.npz"), dataset.talkers),
        )
    return utterance


def _frame_accuracy(path, talkers):
    """{one of FRAME_ACCURACIES: share} of a saved assignment, {} if there is none."""
    if not os.path.exists(path):
        return {}
    try:
        with np.load(path, allow_pickle=False) as saved:
            assign, oracle, weight = (saved[key] for key in ("assign", "oracle", "weight"))
        shares = [metrics.frame_accuracy(assign, oracle, w, talkers) for w in (None, weight)]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: unusable ({error}); write it again or remove it") from error
    return dict(zip(FRAME_ACCURACIES, shares, strict=True))


# Reporting --------------------------------------------------------------------------------------------


def _groups(evaluation):
    """{kind of group: see `score_groups.group_means`}; kinds that all talkers are alike in are left out."""
    columns = {}
    for label in evaluation.utterances[0]:
        scored = [utterance[label] for utterance in evaluation.utterances]
        columns[label] = {metric: np.stack([each.scores[metric] for each in scored]) for metric in scored[0].scores}
    mixture = columns.pop(MIXTURE, {})
    talkers = evaluation.dataset.talkers
    labels = score_groups.label_talkers(evaluation.names, talkers, mixture.get("si_sdr"), evaluation.genders)
    groups = {kind: score_groups.group_means(each, columns) for kind, each in labels.items()}
    return {kind: found for kind, found in groups.items() if len(found) > 1}


def _group_lines(summary, metric_names):
    """Lines of the tables of groups."""
    lines = []
    for kind, groups in summary["groups"].items():
        rows = [["", *(HEADINGS[metric] for metric in metric_names), "talkers"]]
        for group in groups:
            for label, means in group["systems"].items():
                name = group["group"] if len(group["systems"]) == 1 else f"{group['group']}, {label}"
                rows.append([name, *(_cell(m, means.get(m)) for m in metric_names), str(group["talkers"])])
        lines += ["", score_groups.TITLES[kind] + ":", *_align(rows)]
    return lines


def _oracle_bound(systems, oracle):
    """{"label", "si_sdri"} of the system `oracle`, None if it is not there or has no SI-SDRi."""
    for system in systems:
        if system["label"] == oracle and system["means"].get("si_sdri") is not None:
            return {"label": oracle, "si_sdri": system["means"]["si_sdri"]}
    return None


def _cell(metric, mean):
    if mean is None:
        return "-"
    if metric in SHARES:
        return f"{100 * mean:.1f} %"
    return f"{mean:.3f}" if metric == "estoi" else f"{mean:.2f}"


def _align(rows):
    """Rows of text as lines: first and last column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *numbers, last in rows:
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:-1], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells, last]))
    return lines
