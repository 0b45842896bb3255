"""Names and places of clips, pieces, mixtures and tables below one data folder, and lists of clips.

    DATA/<id>_<x>_<y>_final.mp4          clips, 25 frames/s; x, y: centre of the face in 1/10000 of width and height
    DATA/audio/<clip>_part<k>.wav        pieces of 3 s, 16 kHz, 16 bit
    DATA/embed/<clip>_part<k>.npy        float32 [75, size], and embedder.json
    DATA/mixed/<n>.wav
    DATA/train.csv, val.csv, test.csv    tables, see feat/avspeech/tables.py
    DATA/split.csv                       optional: video, set
    DATA/corrupt.csv                     video, part, reason, stage: what cannot be used

The layout is that of vitrioil/Speech-Separation.
"""

import csv
import glob
import io
import os
import re
from dataclasses import dataclass

from feat.base.files import UserError, write_text

FRAME_RATE = 25  # frames/s
SAMPLE_RATE = 16000  # Hz
PART_SECONDS = 3
PART_FRAMES = PART_SECONDS * FRAME_RATE
PART_SAMPLES = PART_SECONDS * SAMPLE_RATE
CLIP_END = "_final"
AUDIO, EMBED, MIXED = "audio", "embed", "mixed"
CORRUPT = "corrupt.csv"
CORRUPT_COLUMNS = ("video", "part", "reason", "stage")
ID_CHARACTERS = 11  # of a video on YouTube


@dataclass(frozen=True)
class Segment:
    """A row of a list of clips.

    Attributes:
      video: id of a video, or path of a video file.
      start, end: seconds; None: the beginning, the end.
      x, y: centre of the face as fractions of width and height; None: the largest face.
      row: number of its line, from 1.
    """

    video: str
    start: float | None
    end: float | None
    x: float | None
    y: float | None
    row: int

    @property
    def id(self):
        """What stands for the video in the names of clips."""
        stem = os.path.splitext(self.video)[0] if re.search(r"\.\w{2,4}$", self.video) else self.video
        return re.sub(r"[@\s,:]", "-", re.sub(r"^[./]+", "", stem).replace("/", "-").replace(os.sep, "-"))


@dataclass(frozen=True)
class Problem:
    """A line of the corrupt list; `part` is None where it is the whole video."""

    video: str
    reason: str
    part: int | None = None


def read_list(path, first=0, last=None):
    """A list of clips without a header: video, start, end, x, y; so is AVSpeech's.

    A header is skipped if its second field is no number. Fields behind the first may be empty or missing.

    Args:
      path: a CSV file.
      first, last: rows to take, counted from 0, as far as before `last`.

    Returns:
      [Segment], [Problem]: what could be read, and what not.

    Raises:
      UserError: the file cannot be read, or has no row.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [(i, row) for i, row in enumerate(csv.reader(file), start=1) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: no list of clips can be read there ({error}); check the path") from error
    if rows and len(rows[0][1]) > 1 and re.match(r"\s*[A-Za-z]", rows[0][1][1]):
        rows = rows[1:]
    if not rows:
        raise UserError(f"{path}: no rows; a list of clips has lines such as VIDEO,START,END,X,Y")
    segments, problems = [], []
    for number, row in rows[first:last]:
        try:
            segments.append(_segment(number, row))
        except ValueError as error:
            problems.append(Problem(row[0].strip(), f"line {number} of {os.path.basename(path)}: {error}"))
    return segments, problems


def _segment(number, row):
    cells = [cell.strip() for cell in row] + [""] * 5
    if not cells[0]:
        raise ValueError("no video")
    try:
        start, end, x, y = (float(cell) if cell else None for cell in cells[1:5])
    except ValueError:
        raise ValueError(f"{','.join(cells[1:5])!r}, four numbers are needed: start, end, x, y") from None
    if (start or 0) < 0 or (end is not None and not end > (start or 0)):
        raise ValueError(f"seconds {cells[1]} to {cells[2]}, the end must come after the start")
    if (x is None) != (y is None) or not all(0 <= value <= 1 for value in (x or 0, y or 0)):
        raise ValueError(f"the point {cells[3]}, {cells[4]}, both must lie within 0 and 1")
    return Segment(cells[0], start, end, x, y, number)


def clip_stems(segments):
    """{Segment: stem of its clip} of a list, <id>_<10000 x>_<10000 y>_final.

    Where two segments of a video have the same point the later ones get @<start in ms> behind the id. Those
    without a point are left out.
    """
    stems, taken = {}, set()
    for segment in segments:
        if segment.x is None:
            continue
        stem = clip_stem(segment.id, segment.x, segment.y)
        if stem in taken:
            stem = clip_stem(segment.id, segment.x, segment.y, segment.start or 0)
        taken.add(stem)
        stems[segment] = stem
    return stems


def clip_stem(video_id, x, y, start=None):
    """Stem of a clip; see `clip_stems`."""
    when = "" if start is None else f"@{round(1000 * start)}"
    return f"{video_id}{when}_{int(10000 * x)}_{int(10000 * y)}{CLIP_END}"


def point_of(stem):
    """(x, y) in the stem of a clip, as fractions; None if there is none."""
    fields = stem.split("_")
    if len(fields) < 3:
        return None
    try:
        return int(fields[-3]) / 10000, int(fields[-2]) / 10000
    except ValueError:
        return None


def video_id(name):
    """Which video a clip or a piece is of: its name without point, time and part."""
    stem = part_of(os.path.splitext(os.path.basename(name))[0])[0]
    stem = re.sub(rf"_\d+_\d+{CLIP_END}$", "", stem.removesuffix(".mp4"))
    return stem.split("@")[0]


def part_name(stem, part):
    return f"{stem}_part{part}"


def part_of(stem):
    """(stem of the clip, number of the part) of a piece's stem; the number is 0 where there is none."""
    match = re.fullmatch(r"(.*)_part(\d+)", stem)
    return (match[1], int(match[2])) if match else (stem, 0)


def find_clips(data_folder):
    """Paths of the clips in a data folder, in order of their names.

    Raises:
      UserError: there are none.
    """
    found = sorted(glob.glob(os.path.join(glob.escape(data_folder), f"*{CLIP_END}.mp4")))
    if not found:
        raise UserError(
            f"{data_folder}: no clips *{CLIP_END}.mp4; make them with feat/avspeech/crop.py, or put them there"
        )
    return found


def stem_of(path):
    return os.path.splitext(os.path.basename(path))[0]


def audio_path(data_folder, stem, part):
    return os.path.join(data_folder, AUDIO, part_name(stem, part) + ".wav")


def embedding_path(data_folder, stem, part, folder=EMBED):
    return os.path.join(data_folder, folder, part_name(stem, part) + ".npy")


def faces_path(video):
    """Where the boxes of the faces in a video may be told: frame, face, x1, y1, x2, y2."""
    return os.path.splitext(video)[0] + ".faces.csv"


def read_corrupt(data_folder):
    """[(stage, Problem)] of the corrupt list; empty if there is none."""
    path = os.path.join(data_folder, CORRUPT)
    if not os.path.exists(path):
        return []
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return [
            (row["stage"] or "", Problem(row["video"], row["reason"], int(row["part"]) if row["part"] else None))
            for row in rows
        ]
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: not a list with {','.join(CORRUPT_COLUMNS)} ({error}); remove it") from error


def write_corrupt(data_folder, stage, problems):
    """Puts [Problem] of a stage into the corrupt list, in place of those of its last run."""
    kept = [(name, problem) for name, problem in read_corrupt(data_folder) if name != stage]
    kept += [(stage, problem) for problem in problems]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(CORRUPT_COLUMNS)
    for name, problem in kept:
        part = "" if problem.part is None else problem.part
        table.writerow([problem.video, part, " ".join(problem.reason.split()), name])
    if kept or os.path.exists(os.path.join(data_folder, CORRUPT)):
        write_text(os.path.join(data_folder, CORRUPT), text.getvalue())


def say_problems(problems, shown=10):
    """Prints the first of [Problem], a line each."""
    for problem in problems[:shown]:
        part = "" if problem.part is None else f", part {problem.part}"
        print(f"left out: {problem.video}{part}: {problem.reason}")
    if len(problems) > shown:
        print(f"left out: {len(problems) - shown} more, see {CORRUPT}")
