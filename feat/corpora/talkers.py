"""Who talks in a mixture, by its name, and whether they are men or women, by the tables of the corpora."""

import os
import re

from feat.base.files import UserError
from feat.corpora.lists import parts_of_name, plain_talker, talker_of
from feat.corpora.triplets import talkers_of_triplet

GENDERS = {"m": "male", "male": "male", "f": "female", "female": "female"}
TABLES = ("SPEAKERS.TXT", "talkers.tsv", "spkrinfo.txt", "spk2gender")  # LibriSpeech, built-in voices, WSJ0, Kaldi


class GenderTable(dict):
    """{talker: "male" or "female"} of a file.

    Attributes:
        path: of the file.
        second: {first field: second} of its lines as they stand, for a table of mixtures in place of talkers.
        useless: whether it was said that it names nobody of those who are asked for.
    """

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.second = {}
        self.useless = False


def read_genders(path):
    """GenderTable of a file with a talker a line, and the gender in one of the fields behind.

    Fields are parted by blanks, tabs or |, which SPEAKERS.TXT of LibriSpeech, talkers.tsv of feat/voices.py,
    spkrinfo.txt of WSJ0 and spk2gender of Kaldi all have in common. Lines that start with ; are comments. The
    spk2gender of gemengtju/SpEx_Plus has a mixture a line instead, and then a name of its group, such as MF.

    Raises:
        UserError: it cannot be read, or has no line of several fields.
    """
    genders = GenderTable(path)
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            for line in file:
                talker, *fields = [field for field in re.split(r"[|\s]+", line.strip()) if field] or [""]
                if not fields or talker.startswith(";"):
                    continue
                genders.second[talker] = fields[0]
                found = [GENDERS[field.lower()] for field in fields if field.lower() in GENDERS]
                if found:
                    genders[plain_talker(talker)] = found[0]
    except OSError as error:
        raise UserError(f"{path}: no table can be read there ({error.strerror}); check the path") from error
    if not genders.second:
        raise UserError(f"{path}: no line has a talker, then M or F; give a table such as LibriSpeech's SPEAKERS.TXT")
    return genders


def find_genders(corpus_folder):
    """Path of the table in a corpus or in one of three folders above it, or ""."""
    folder = os.path.abspath(corpus_folder)
    for _ in range(4):
        for name in TABLES:
            if os.path.isfile(os.path.join(folder, name)):
                return os.path.join(folder, name)
        folder = os.path.dirname(folder)
    return ""


def talkers_of_mixture(name, talkers):
    """Talkers of a mixture, by its name: of all its references, or (`talkers` is 1) the target and the interferer.

    Raises:
        UserError: it is no such name.
    """
    if talkers == 1:
        return talkers_of_triplet(name)
    return tuple(plain_talker(talker_of(part)) for part in parts_of_name(name, talkers))


def gender_labels(name, talkers, genders):
    """For every reference of a mixture who talks and against whom: ["female against male", ...].

    Args:
        genders: {talker: "male" or "female"}; others are "unknown".
    """
    found = [genders.get(talker, "unknown") for talker in talkers_of_mixture(name, talkers)]
    return [f"{found[i]} against {' and '.join(sorted(found[:i] + found[i + 1 :]))}" for i in range(talkers)]
