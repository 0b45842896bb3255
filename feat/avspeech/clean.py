"""Takes rows that cannot be used out of the tables.

    python feat/avspeech/clean.py --data_folder DATA

drops rows of train.csv, val.csv and test.csv whose mixture file is missing or too small, and those with a piece in
DATA/corrupt.csv. --parity drops whole videos, of which one piece cannot be used, as the reference does; --loader_folder
writes a second copy of the tables there, with paths one folder deeper (../ becomes ../../), which other programs of
that layout may want.
"""

import os

from feat.base.script import run_script

from absl import flags

from feat.avspeech import tables
from feat.avspeech.clips import part_of, read_corrupt, stem_of
from feat.avspeech.mix import REFERENCE_PREFIX, place
from feat.base.files import UserError


def corrupt_pieces(data_folder):
    """(videos, pieces) that the corrupt list names: stems of clips, and (stem, part)."""
    problems = [problem for _, problem in read_corrupt(data_folder)]
    return {p.video for p in problems if p.part is None}, {(p.video, p.part) for p in problems if p.part is not None}


def without_corrupt(rows, videos, pieces, whole_videos=False):
    """The rows that use none of the `videos` and `pieces` of `corrupt_pieces`."""
    if whole_videos:
        videos = videos | {video for video, _ in pieces}
    kept = []
    for row in rows:
        used = [part_of(stem_of(path)) for path in row.audios]
        if not {stem_of(path) for path in row.videos} & videos and not set(used) & pieces:
            kept.append(row)
    return kept


def clean_tables(data_folder, smallest=tables.SMALLEST_BYTES, parity=False, loader_folder=None):
    """Cleans the tables of a folder. Gives a line about each.

    Raises:
      UserError: there are no tables.
    """
    paths = [tables.table_path(data_folder, name) for name in tables.SETS]
    paths = [path for path in paths if os.path.exists(path)]
    if not paths:
        raise UserError(f"{data_folder}: no train.csv, val.csv or test.csv; make them with feat/avspeech/mix.py")
    videos, pieces = corrupt_pieces(data_folder)
    lines = []
    for path in paths:
        rows, talkers, noise = tables.read_table(path)
        prefix = REFERENCE_PREFIX if rows and rows[0].mixed.startswith(REFERENCE_PREFIX) else ""
        big = tables.without_empty(rows, smallest, lambda row: place(data_folder, row.mixed, prefix))
        kept = without_corrupt(big, videos, pieces, whole_videos=parity)
        if len(kept) < len(rows):
            tables.write_table(path, kept, talkers, noise)
        if loader_folder:
            deeper = [tables.one_folder_deeper(row) for row in kept]
            tables.write_table(os.path.join(loader_folder, os.path.basename(path)), deeper, talkers, noise)
        lines.append(f"{path}: {len(kept)} rows; {len(rows) - len(big)} without a whole mixture and"
                     f" {len(big) - len(kept)} of unusable pieces taken out")  # fmt: skip
    return lines


def define_flags():
    flags.DEFINE_string("data_folder", "faces", "folder of the tables")
    flags.DEFINE_integer("smallest_bytes", tables.SMALLEST_BYTES, "of a mixture's file", lower_bound=0)
    flags.DEFINE_string("loader_folder", None, "folder for copies of the tables with paths one folder deeper")
    flags.DEFINE_bool("parity", False, "drop whole videos of which one piece cannot be used")


def main(_):
    values = flags.FLAGS
    print("\n".join(clean_tables(values.data_folder, values.smallest_bytes, values.parity, values.loader_folder)))


if __name__ == "__main__":
    define_flags()
    run_script(main)
