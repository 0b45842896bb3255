"""Where the wavs of a set of binaural mixtures lie, what its manifest says, and whose talkers it has."""

import csv
import json
import os

from feat.files import UserError
from feat.lists import SETS, rate_folder
from feat.wsj0_mix import find_utterances

NOISE_SIGNALS = ("mix_clean", "mix_single", "mix_both")  # of sets with noise; the last is the mixture
SHORTEST = 1040  # samples of a mixture; networks need as many


def set_folder(output_folder, kind, set_name, sample_rate=8000, mode="min"):
    """Folder of mix/, s1/ and so on of a set; `kind`: 2speakers, 3speakers, noise or reverb."""
    return os.path.join(output_folder, kind, rate_folder(sample_rate), mode, set_name)


def read_manifest(folder):
    """Rows of the manifest of a set's folder, [{name: text}]. Raises UserError if the set was not made to its end."""
    path = os.path.join(folder, "manifest.csv")
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; run feat/binaural_mix.py to its end") from error


def divide_talkers(corpus_folder, seed):
    """{set: {talker: [path]}} of a corpus as feat/binaural_mix.py divides it, see feat.wsj0_mix.find_utterances."""
    return find_utterances(corpus_folder, seed, dict(zip(SETS, (0.8, 0.1, 0.1))))


def training_talkers(corpus_folder, held_out, default_seed=0):
    """The talkers of a corpus that may be trained on, divided as the sets made of it were.

    Args:
      corpus_folder: see feat.wsj0_mix.find_utterances.
      held_out: folders of the sets cv and tt, see `set_folder`.
      default_seed: of the division, where the sets were not made here and do not tell theirs.

    Returns:
      ({talker: [path]}, the seed of the sets).

    Raises:
      UserError: one of them is in these sets, which are of another corpus, or of what this one was before.
    """
    seed = _drawn_seed(held_out[0], default_seed)
    utterances = divide_talkers(corpus_folder, seed)["tr"]
    for folder in held_out:
        heard = _talkers_of_manifest(folder)
        known = next((talker for talker in utterances if talker in heard), None)
        if known is not None:
            raise UserError(
                f"{folder}: talker {known} of it would be trained on too; make the sets cv and tt again from"
                f" {corpus_folder}, with feat/binaural_mix.py"
            )
    return utterances, seed


def _drawn_seed(folder, default):
    """The seed that a set was drawn with."""
    try:
        with open(os.path.join(folder, *[os.pardir] * 3, "settings.json"), encoding="utf-8") as file:
            return json.load(file).get("seed", default)
    except FileNotFoundError:
        return default


def _talkers_of_manifest(folder):
    """Talkers that the manifest of a set names, a set; empty if there is no manifest."""
    if not os.path.exists(os.path.join(folder, "manifest.csv")):
        return set()
    columns = [f"s{c}_source" for c in range(1, 10)]
    paths = [row[column].split("/") for row in read_manifest(folder) for column in columns if column in row]
    return {path[1] if path[0] in SETS else path[0] for path in paths}
