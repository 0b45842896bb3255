"""Tables of mixtures: video_1..P, audio_1..P, mixed_audio and, with noise, noise; paths relative to the data folder."""

import csv
import io
import os
import re
from dataclasses import dataclass

from feat.avspeech.clips import EMBED
from feat.base.files import UserError, write_text

NOISE = "noise"
SETS = ("train", "val", "test")
SMALLEST_BYTES = 96000  # of a mixture of 3 s


@dataclass(frozen=True)
class Row:
    """A mixture: clips and pieces of its talkers, its wav, and pieces of noise in it."""

    videos: tuple
    audios: tuple
    mixed: str
    noises: tuple = ()

    @property
    def name(self):
        """Of the mixture."""
        return os.path.splitext(os.path.basename(self.mixed))[0]

    @property
    def embeddings(self):
        """Where those of each talker are, below the data folder."""
        return tuple(map(embedding_of, self.audios))

    def with_paths(self, change):
        """The row with `change` done to every path."""
        return Row(
            tuple(map(change, self.videos)), tuple(map(change, self.audios)), change(self.mixed),
            tuple(map(change, self.noises)),
        )  # fmt: skip


def embedding_of(audio):
    """embed/<stem>.npy of audio/<stem>.wav."""
    return f"{EMBED}/{os.path.splitext(os.path.basename(audio))[0]}.npy"


def columns(talkers, noise=False):
    """Header of a table."""
    numbers = range(1, talkers + 1)
    named = [f"video_{i}" for i in numbers] + [f"audio_{i}" for i in numbers] + ["mixed_audio"]
    return named + [NOISE] * noise


def table_path(data_folder, set_name):
    return os.path.join(data_folder, set_name + ".csv")


def format_table(rows, talkers, noise=False):
    """Text of [Row]."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns(talkers, noise))
    for row in rows:
        table.writerow([*row.videos, *row.audios, row.mixed, *([":".join(row.noises)] if noise else [])])
    return text.getvalue()


def write_table(path, rows, talkers, noise=False):
    """Writes [Row], whole or not at all."""
    write_text(path, format_table(rows, talkers, noise))


def read_table(path):
    """A table as [Row], its number of talkers, and whether it has a column of noise.

    Columns are found by their names, in any order; others are left out.

    Raises:
      UserError: it cannot be read, or lacks a column or a field.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = [line for line in csv.reader(file) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: no table can be read there ({error}); make it with feat/avspeech/mix.py") from error
    header = [name.strip() for name in lines[0]] if lines else []
    talkers = sum(bool(re.fullmatch(r"audio_\d+", name)) for name in header)
    missing = [name for name in columns(max(1, talkers)) if name not in header]
    if missing:
        raise UserError(f"{path}: has no column {missing[0]}; make it again with feat/avspeech/mix.py")
    place = {name: header.index(name) for name in header}
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(header):
            raise UserError(f"{path}, line {number}: {len(line)} fields, {len(header)} are needed; mend it")
        video, audio = (tuple(line[place[f"{kind}_{i}"]] for i in range(1, talkers + 1)) for kind in ("video", "audio"))
        noises = tuple(filter(None, line[place[NOISE]].split(":"))) if NOISE in place else ()
        rows.append(Row(video, audio, line[place["mixed_audio"]], noises))
    return rows, talkers, NOISE in place


def without_empty(rows, smallest, path_of):
    """The rows whose mixture, at `path_of`(row), has at least `smallest` bytes."""

    def size(path):
        return os.path.getsize(path) if os.path.isfile(path) else 0

    return [row for row in rows if size(path_of(row)) >= smallest]


def one_folder_deeper(row):
    """The row as seen from a folder below that of its table: ../ becomes ../../."""
    return row.with_paths(lambda path: "../" + path if path.startswith("../") else path)
