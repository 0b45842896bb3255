"""Result folders of diffusion separation: their names, what is in them, means, and DNSMOS beside it.

    results/RUN_CHECKPOINT_N-30_snr-0.5_corrstep-1_denoise-True_schedule-None/
      test.json            {index: {"batch_idx", "si_sdr": [[per source]], "pesq": [per source], "nfe", ...}}
      test_summary.json    means over files, "number"
      fig/test, wav/test   of some

The layout is that of fakufaku/diffusion-separation, whose folders can be read too.
"""

import csv
import json
import math
import os
import re

import numpy as np

from feat.base.files import UserError, write_text

NOT_MEANT = ("batch_idx", "name")  # entries that have no mean
UNPROCESSED = "__no_proc__"  # in place of a checkpoint: the mixture itself
FOLDER = re.compile(
    r"(?P<run>.*)_N-(?P<steps>\d+)_snr-(?P<snr>[\d.]+)_corrstep-(?P<corrector_steps>\d+)_denoise-(?P<denoise>True|False)"
    r"_schedule-(?P<schedule>[a-z]+|None)(?P<more>(?:_[a-z]+-[^_]+)*)"
)
STEM = re.compile(r"(\d+)\.(enh|tgt)(\d+)")


def folder_name(run, steps, snr, corrector_steps, denoise=True, schedule=None, **more):
    """Name of a result folder; `more`: {name: value} of options that the reference has not, None where not given."""
    name = f"{run}_N-{steps}_snr-{snr:g}_corrstep-{corrector_steps}_denoise-{bool(denoise)}_schedule-{schedule}"
    known = {key.replace("_", ""): str(value).replace("_", "") for key, value in more.items() if value is not None}
    return name + "".join(f"_{key}-{value}" for key, value in known.items())


def read_folder_name(name):
    """What `folder_name` was given, as a dictionary, or None for another name."""
    match = FOLDER.fullmatch(os.path.basename(os.path.normpath(name)))
    if match is None:
        return None
    more = dict(part.split("-", 1) for part in match["more"].split("_") if part)
    return {
        "run": match["run"],
        "steps": int(match["steps"]),
        "snr": float(match["snr"]),
        "corrector_steps": int(match["corrector_steps"]),
        "denoise": match["denoise"] == "True",
        "schedule": None if match["schedule"] == "None" else match["schedule"],
        **more,
    }


def run_name(source):
    """RUN_CHECKPOINT of a checkpoint: the folder of the run, and the checkpoint's own name."""
    folder, stem = os.path.split(os.path.abspath(source))
    if os.path.basename(folder) == "checkpoints":
        folder = os.path.dirname(folder)
    for suffix in (".ckpt", ".pt", ".pth"):
        stem = stem.removesuffix(suffix)
    return f"{os.path.basename(folder)}_{stem}"


def summarise(results, ignore_infinite=True):
    """Means over files of the mean of each entry.

    Args:
        results: {index: entry} or [entry].
        ignore_infinite: files whose value is infinite do not count; what is missing or NaN never does.

    Returns:
        {name: mean, None where no file has a value}, and "number", that of the files.
    """
    entries = list(results.values()) if isinstance(results, dict) else list(results)
    means = {}
    for name in dict.fromkeys(name for entry in entries for name in entry if name not in NOT_MEANT):
        values = [file_mean(entry.get(name)) for entry in entries]
        values = [v for v in values if not math.isnan(v) and not (ignore_infinite and math.isinf(v))]
        means[name] = float(np.mean(values)) if values else None
    return means | {"number": len(entries)}


def file_mean(value):
    """Mean of a number or of nested lists of numbers, without those that are None or NaN; NaN if there are none."""
    flat = np.array([math.nan if v is None else float(v) for v in _flat(value)])
    defined = flat[~np.isnan(flat)]
    return float(defined.mean()) if defined.size else math.nan


def _flat(value):
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _flat(part)
    else:
        yield value


def read_results(path):
    """{index as text: entry} of a JSON of results, in either form of the reference. Raises UserError."""
    try:
        with open(path, encoding="utf-8") as file:
            results = json.load(file)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; run nn/diffsep_evaluate.py to its end") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); evaluate again") from error
    if isinstance(results, list):
        results = {str(entry.get("batch_idx", i)): entry for i, entry in enumerate(results)}
    return results


def write_results(folder, split, results, more=""):
    """Writes the entries and their means; gives the means.

    Args:
        more: end of both names, such as "_with_dnsmos".
    """
    summary = summarise(results)
    for name, content in ((f"{split}{more}.json", results), (f"{split}_summary{more}.json", summary)):
        write_text(os.path.join(folder, name), json.dumps(content, indent=2) + "\n")
    return summary


# DNSMOS -------------------------------------------------------------------------------------------


def read_dnsmos(rows):
    """DNSMOS by file and channel.

    Args:
        rows: of the csv, the first with the names of the columns; files are named INDEX.enhCHANNEL.wav or
            INDEX.tgtCHANNEL.wav, whose columns get "tgt_" before their names.

    Returns:
        {index as text: {column: [value of every channel]}}.

    Raises:
        ValueError: there is no column "filename", or a file is named otherwise.
    """
    head, *rows = rows
    if "filename" not in head:
        raise ValueError("no column filename")
    columns = [name for name in head if name and name != "filename"]
    found = {}
    for row in rows:
        row = dict(zip(head, row))
        stem = os.path.splitext(os.path.basename(row["filename"]))[0]
        match = STEM.fullmatch(stem)
        if match is None:
            raise ValueError(f"{row['filename']}: not INDEX.enhCHANNEL.wav or INDEX.tgtCHANNEL.wav")
        index, kind, channel = str(int(match[1])), match[2], int(match[3])
        for column in columns:
            name = column if kind == "enh" else f"tgt_{column}"
            found.setdefault(index, {}).setdefault(name, {})[channel] = _number(row[column])
    return {
        index: {name: [values[c] for c in sorted(values)] for name, values in entry.items()}
        for index, entry in found.items()
    }


def read_dnsmos_file(path):
    """`read_dnsmos` of a csv file. Raises UserError."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return read_dnsmos(list(csv.reader(file)) or [[]])
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}; give a csv of DNSMOS") from error


def merge(results, dnsmos):
    """Entries of {index: entry} with what DNSMOS has of each."""
    return {index: entry | dnsmos.get(index, {}) for index, entry in results.items()}


def _number(text):
    """int or float of a cell."""
    value = float(text)
    return int(value) if value.is_integer() and "." not in str(text) else value
