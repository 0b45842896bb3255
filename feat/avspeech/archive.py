"""Packs what training needs of a data folder into one zip: pieces, mixtures, embeddings, noise and tables.

    python feat/avspeech/archive.py --data_folder DATA --archive faces.zip

Nothing is compressed, as speech hardly gets smaller. Clips are left out unless --clips asks for them.
"""

import glob
import os
import zipfile

from feat.base.script import run_script

from absl import flags

from feat.avspeech.clips import AUDIO, CLIP_END, EMBED, MIXED
from feat.avspeech.noise import NOISE
from feat.base.files import UserError, atomic_path, require_free_bytes
from feat.base.parallel import progress

PACKED = (f"{AUDIO}/*.wav", f"{MIXED}/*.wav", f"{EMBED}/*.npy", f"{EMBED}/*.json", f"{NOISE}/*.wav", "*.csv")


def pack(data_folder, archive, clips=False):
    """Packs a data folder; gives the number of files and bytes.

    Raises:
      UserError: there is nothing to pack, or the disk is too small.
    """
    patterns = PACKED + ((f"*{CLIP_END}.mp4",) if clips else ())
    paths = [
        path for pattern in patterns for path in sorted(glob.glob(os.path.join(glob.escape(data_folder), pattern)))
        if not path.endswith(".faces.csv")
    ]  # fmt: skip
    if not paths:
        raise UserError(f"{data_folder}: holds no pieces, mixtures, embeddings or tables; check --data_folder")
    size = sum(map(os.path.getsize, paths))
    require_free_bytes(archive, size, "the files of the archive")
    with atomic_path(archive) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as packed:
        for path in progress(paths, os.path.basename(archive)):
            packed.write(path, os.path.relpath(path, data_folder))
    return len(paths), size


def define_flags():
    flags.DEFINE_string("data_folder", "faces", "folder to pack")
    flags.DEFINE_string("archive", "data.zip", "zip to write")
    flags.DEFINE_bool("clips", False, "pack the clips too")


def main(_):
    values = flags.FLAGS
    count, size = pack(values.data_folder, values.archive, values.clips)
    print(f"{values.archive}: {count} files, {size / 1e9:.2f} GB")


if __name__ == "__main__":
    define_flags()
    run_script(main)
