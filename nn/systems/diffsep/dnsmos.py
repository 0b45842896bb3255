r"""Puts DNSMOS beside the results of an evaluation: from its csv, or computed here.

    python nn/systems/diffsep/dnsmos.py --results results/RUN            every SPLIT_dnsmos.csv there
    python nn/systems/diffsep/dnsmos.py --results results/RUN --run      scores wav/SPLIT first (pip install .[mos])

--results holds SPLIT.json; the csv of DNSMOS (microsoft/DNS-Challenge) names files like 0007.enh0.wav. Writes
SPLIT_with_dnsmos.json and SPLIT_summary_with_dnsmos.json, or with --overwrite_results the two files themselves.
"""

import csv
import glob
import importlib.util
import io
import os

from feat.base.script import run_script

import numpy as np
from absl import flags

from feat.base.files import UserError, write_text
from feat.base.parallel import parallel_map
from feat.signals.audio import read_resampled, wav_info
from nn.systems.diffsep.results import STEM, merge, read_dnsmos_file, read_results, write_results

RATE = 16000  # Hz
COLUMNS = ("", "filename", "len_in_sec", "sr", "OVRL", "SIG", "BAK", "P808")


def score_file(path):
    """Row of the csv of one wav, but for its number."""
    from speechmos import dnsmos

    samples = read_resampled(path, RATE)
    samples = samples / max(1.0, np.abs(samples).max(initial=0))
    found = dnsmos.run(samples.astype(np.float32), RATE)
    moses = [round(float(found[f"{name}_mos"]), 4) for name in ("ovrl", "sig", "bak", "p808")]
    return [path, round(wav_info(path).seconds, 4), RATE, *moses]


def write_scores(folder, split, num_workers=0):
    """Scores folder/wav/split into folder/split_dnsmos.csv. Raises UserError."""
    if any(importlib.util.find_spec(name) is None for name in ("speechmos", "librosa", "onnxruntime")):
        raise UserError("DNSMOS is not installed; get it with: pip install -e .[mos], or give its csv")
    paths = sorted(glob.glob(os.path.join(glob.escape(folder), "wav", split, "*.wav")))
    paths = [path for path in paths if STEM.fullmatch(os.path.basename(path)[:-4])]
    if not paths:
        raise UserError(f"{folder}/wav/{split}: no files like 0000.enh0.wav; run nn/diffsep_evaluate.py --save_n -1")
    rows = parallel_map(score_file, paths, num_workers, "DNSMOS")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *([i, *row] for i, row in enumerate(rows))])
    write_text(os.path.join(folder, f"{split}_dnsmos.csv"), text.getvalue())


def merge_split(folder, split, overwrite=False):
    """Merges folder/split_dnsmos.csv with folder/split.json; gives a line that sums up."""
    dnsmos = read_dnsmos_file(os.path.join(folder, f"{split}_dnsmos.csv"))
    results = read_results(os.path.join(folder, f"{split}.json"))
    summary = write_results(folder, split, merge(results, dnsmos), "" if overwrite else "_with_dnsmos")
    shown = ", ".join(f"{name} {summary[name]:.3f}" for name in ("OVRL", "SIG", "BAK") if summary.get(name) is not None)
    return f"{folder}, {split}: {len(dnsmos)} of {len(results)} files have DNSMOS; {shown}"


def define_flags():
    flags.DEFINE_string("results", None, "folder that nn/diffsep_evaluate.py wrote")
    flags.DEFINE_list("splits", [], "splits to merge; default: all that have a csv, or with --run wavs")
    flags.DEFINE_bool("run", False, "compute DNSMOS of the saved wavs first")
    flags.DEFINE_bool("overwrite_results", False, "write into the results themselves")
    flags.DEFINE_integer("num_workers", 0, "processes; 0: one for every core", lower_bound=0)


def main(_):
    values = flags.FLAGS
    if not values.results:
        raise UserError("--results is missing: the folder that nn/diffsep_evaluate.py wrote")
    splits = values.splits
    if not splits and values.run:
        splits = sorted(
            os.path.basename(path) for path in glob.glob(os.path.join(glob.escape(values.results), "wav", "*"))
        )
    elif not splits:
        found = glob.glob(os.path.join(glob.escape(values.results), "*_dnsmos.csv"))
        splits = sorted(os.path.basename(path).removesuffix("_dnsmos.csv") for path in found)
    if not splits:
        raise UserError(f"{values.results}: no SPLIT_dnsmos.csv in it; put it there, or give --run")
    for split in splits:
        if values.run:
            write_scores(values.results, split, values.num_workers)
        print(merge_split(values.results, split, values.overwrite_results))


if __name__ == "__main__":
    define_flags()
    run_script(main)
