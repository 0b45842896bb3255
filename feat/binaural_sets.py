"""Where the wavs of a set of binaural mixtures lie, and what its manifest says."""

import csv
import os

from feat.files import UserError
from feat.lists import rate_folder

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
