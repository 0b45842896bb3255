"""Whether the wanted talker is in a mixture at all: how well a confidence tells, and the threshold that follows."""

import csv
import io
import json
import os

import numpy as np

from feat.base.files import UserError, write_text
from feat.corpora.triplets import talkers_of_triplet
from nn.checkpoints import ours as checkpoint
from nn.scoring import metrics


def draw_absent(triplets, seed):
    """For every Triplet another one, whose target is not in the mixture. Raises UserError if there is none."""
    random = np.random.default_rng(seed)
    drawn = []
    for triplet in triplets:
        there = {triplet.speaker, *talkers_of_triplet(triplet.name)}
        others = [other for other in triplets if other.speaker not in there]
        if not others:
            raise UserError(f"--absent: every talker of the set is in {triplet.name}; take a set with more talkers")
        drawn.append(others[random.integers(len(others))])
    return drawn


def write_confidences(folder, triplets, present, absent=None, drawn=None):
    """Writes confidence.csv.

    Args:
        present: [mixtures] confidences of the targets.
        absent: [mixtures] those of the targets of `drawn`, which draw_absent gave; None if nothing was drawn.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["utterance", "confidence", *(["absent", "absent_confidence"] if drawn else [])])
    for i, triplet in enumerate(triplets):
        row = [triplet.name, f"{present[i]:.6f}"]
        writer.writerow([*row, drawn[i].speaker, f"{absent[i]:.6f}"] if drawn else row)
    write_text(os.path.join(folder, "confidence.csv"), text.getvalue())


def measure_threshold(source, set_folder, folder, present, absent):
    """Measures how well confidences tell, and writes it as confidence.json.

    The threshold is kept beside the checkpoint too, unless that of another set is there already: then that one is
    tried on this set, which is how it should be measured.

    Args:
        source: the checkpoint.
        set_folder: of the set.
        folder: to write to.
        present, absent: [mixtures] confidences of talkers who are there, and who are not.

    Returns:
        lines to print.
    """
    found = {"set": os.path.abspath(set_folder), "mixtures": len(present), **metrics.detection(present, absent)}
    found |= metrics.error_rates(present, absent, found["threshold"])
    lines = [
        f"confidence of {len(present)} talkers who are there and {len(absent)} who are not: AUC {found['auc']:.3f},"
        f" equal error rate {100 * found['equal_error_rate']:.1f} % at {found['threshold']:.3f}"
    ]
    stored = read_threshold(source)
    if stored is None or stored["set"] == found["set"]:
        path = threshold_path(source)
        write_text(path, json.dumps(found, indent=1) + "\n")
        lines.append(f"{path}: written, for --reject of nn/separate.py")
    else:
        rates = metrics.error_rates(present, absent, stored["threshold"])
        found["threshold_of_other_set"] = {"threshold": stored["threshold"], "set": stored["set"]} | rates
        lines.append(
            f"at {stored['threshold']:.3f}, from {stored['set']}: {100 * rates['false_reject']:.1f} % of those who are"
            f" there are missed, {100 * rates['false_accept']:.1f} % of those who are not are let through"
        )
    write_text(os.path.join(folder, "confidence.json"), json.dumps(found, indent=1) + "\n")
    return lines


def threshold_path(source):
    """Where the threshold of a checkpoint is kept."""
    return checkpoint.resolve(source) + checkpoint.THRESHOLD


def read_threshold(source):
    """What measure_threshold left beside a checkpoint, {"threshold", "set", ...}, or None."""
    path = threshold_path(source)
    try:
        with open(path, encoding="utf-8") as file:
            stored = json.load(file)
        return stored | {"threshold": float(stored["threshold"]), "set": str(stored["set"])}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no threshold in it ({error}); delete it and measure it again") from error
