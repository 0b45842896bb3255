"""Finds the face of every clip and embeds it: DATA/embed/<clip>_part<k>.npy, float32 [75, size].

    python feat/avspeech/embed_faces.py --data_folder DATA

Which face it is, the point in the clip's name says. --detector mtcnn finds faces and follows them; told takes boxes
from <clip>.faces.csv (frame, face, x1, y1, x2, y2) or, without such a file, a box around the point. --embedder is
mouth, which needs no weights, or dlib; nn/systems/looking_to_listen/facenet.py is this stage with FaceNet. Embeddings
made elsewhere are told by --embedder npy --size 512, which only checks them.

Clips and pieces without a usable face are written to DATA/corrupt.csv with the reason, and the others go on. What is
there already is left alone.
"""

import functools
import glob
import os
from dataclasses import dataclass

from feat.base.script import run_script

import numpy as np
from absl import flags

from feat.avspeech import boxes, embedders, geometry
from feat.avspeech.clips import (
    EMBED,
    FRAME_RATE,
    PART_FRAMES,
    Problem,
    embedding_path,
    faces_path,
    find_clips,
    point_of,
    read_corrupt,
    say_problems,
    stem_of,
    write_corrupt,
)
from feat.avspeech.video import RATE_TOLERANCE, read_frames, video_info
from feat.base.files import UserError, make_writable_directory, require_free_bytes
from feat.base.parallel import parallel_map

STAGE = "faces"
DETECTORS = ("mtcnn", "told")


@dataclass(frozen=True)
class FaceStage:
    """How faces are found and embedded.

    Attributes:
      data_folder, embed_folder: see feat/avspeech/clips.py; the second is relative to the first.
      embedder: makes the embedder; a class or a functools.partial, as processes need it.
      detector: one of DETECTORS.
      told_size: height of a box around the point, as a share of the picture's, where nothing else tells.
      most_missing: frames of a piece that may lack the face.
      smallest_face: pixels of the shorter side of its box, in the middle of the clip's.
      any_frame_rate: take clips of other rates than 25 frames/s.
      parity: the reference's choice: detection in every frame, the first box that holds the point, which stays where
        it is; one piece with too many frames missing makes the whole clip unusable.
    """

    data_folder: str
    embedder: object
    embed_folder: str = EMBED
    detector: str = "mtcnn"
    told_size: float = 0.5
    most_missing: int = 20
    smallest_face: int = 24
    any_frame_rate: bool = False
    parity: bool = False


def embed_clips(stage, retry=False, num_workers=0):
    """Embeds the faces of all clips of a folder.

    Args:
      stage: FaceStage.
      retry: try again what was found unusable.
      num_workers: processes; 0 takes one for every core.

    Returns:
      The number of pieces that are there now, and [Problem].

    Raises:
      UserError: there are no clips, another embedder's are in the folder, or a package is missing.
    """
    clips = find_clips(stage.data_folder)
    embedder = stage.embedder()
    folder = os.path.join(stage.data_folder, stage.embed_folder)
    make_writable_directory(folder)
    embedders.claim_cache(folder, embedders.card(embedder))
    known = [] if retry else _known_problems(stage.data_folder, clips)
    jobs = []
    for clip in clips:
        bad = {problem.part for problem in known if problem.video == stem_of(clip)}
        if None not in bad:
            jobs.append((stage, clip, bad))
    require_free_bytes(folder, 4 * PART_FRAMES * embedder.size * len(jobs), "the embeddings")
    found = parallel_map(embed_clip, jobs, num_workers, "faces")
    problems = known + [problem for _, some in found for problem in some]
    write_corrupt(stage.data_folder, STAGE, problems)
    return sum(count for count, _ in found), problems


def _known_problems(data_folder, clips):
    """Those of the corrupt list whose clip has not changed since."""
    path = os.path.join(data_folder, "corrupt.csv")
    written = os.path.getmtime(path) if os.path.exists(path) else 0
    old = {stem_of(clip) for clip in clips if os.path.getmtime(clip) <= written}
    return [problem for stage, problem in read_corrupt(data_folder) if stage == STAGE and problem.video in old]


@functools.lru_cache(maxsize=1)
def _made(embedder):
    """An embedder, made once in a process."""
    return embedder()


def embed_clip(job):
    """Embeds the pieces of (FaceStage, clip, parts known as bad) that are missing. Gives their number and [Problem]."""
    stage, path, bad = job
    stem = stem_of(path)
    place = functools.partial(embedding_path, stage.data_folder, stem, folder=stage.embed_folder)
    try:
        info = video_info(path)
        if not stage.any_frame_rate and abs(info.frame_rate - FRAME_RATE) > RATE_TOLERANCE:
            raise UserError(
                f"{info.frame_rate:.2f} frames/s, {FRAME_RATE} are needed; crop it again or give --any_frame_rate"
            )
        parts = round(info.seconds * FRAME_RATE) // PART_FRAMES
        if not parts:
            raise UserError(f"{info.seconds:.2f} s of pictures, {PART_FRAMES / FRAME_RATE:g} s are needed")
        wanted = [k for k in range(parts) if k not in bad and not os.path.exists(place(k))]
        if not wanted:
            return parts - len(bad), []
        embedder = _made(stage.embedder)
        crops = follow_point(stage, path, info, embedder)
        crops += [None] * (parts * PART_FRAMES - len(crops))  # its header may promise a frame more
        missing = {}
        for k in wanted:
            piece = crops[k * PART_FRAMES : (k + 1) * PART_FRAMES]
            count = PART_FRAMES - sum(crop is not None for crop in piece)
            if count > stage.most_missing:
                missing[k] = count
        if stage.parity and missing:
            raise UserError(f"no face in {max(missing.values())} of {PART_FRAMES} frames")
        values = embedders.embed(embedder, crops)
    except UserError as error:
        return 0, [Problem(stem, str(error).removeprefix(f"{path}: "))]
    problems = [Problem(stem, f"no face in {count} of {PART_FRAMES} frames", k) for k, count in missing.items()]
    for k in wanted:
        if k not in missing:
            embedders.write_embedding(place(k), values[k * PART_FRAMES : (k + 1) * PART_FRAMES])
    return parts - len(missing) - len(bad), problems


def follow_point(stage, path, info, embedder):
    """Crops of the face at the point of a clip.

    Args:
      stage: FaceStage.
      path: of the clip.
      info: its VideoInfo.
      embedder: see feat/avspeech/embedders.py.

    Returns:
      [frames] of uint8 [crop_size, crop_size, 3], or None where the face is missing.

    Raises:
      UserError: it has no such face, or several and no point, or a too small one; or cannot be read to its end.
    """
    point = point_of(stem_of(path))
    if point is None and stage.parity:
        raise UserError("has no point in its name")
    if point is not None:
        point = point[0] * info.width, point[1] * info.height
    crops, sides, faces, chosen, together = [], [], set(), None, 0
    for frame, found in faces_of_frames(stage, path, info, point):
        faces |= found.keys()
        together = max(together, len(found))
        if stage.parity or chosen not in found:
            chosen = _choose(found, point, first=stage.parity) if found else chosen
        box = found.get(chosen)
        crops.append(None if box is None else embedders.crop_for(embedder, frame, box))
        if box is not None:
            sides.append(min(box[2] - box[0], box[3] - box[1]))
    if not faces:
        raise UserError("no face was found")
    if point is None and together > 1:
        raise UserError(f"{together} faces, and no point in its name says which")
    if not sides:
        raise UserError(f"{together} face{'s' * (together > 1)}, none at the point of its name")
    if np.median(sides) < stage.smallest_face and not stage.parity:
        raise UserError(f"a face of {np.median(sides):.0f} pixels, {stage.smallest_face} are needed")
    return crops


def faces_of_frames(stage, path, info, point):
    """Yields every frame of a clip and {face: box} in it."""
    frames = read_frames(path, threads=1)
    if stage.detector == "mtcnn":
        from feat.avspeech.detector import follow_faces, made_detector

        yield from follow_faces(frames, made_detector(), every=1 if stage.parity else None)
        return
    told = None
    if os.path.exists(faces_path(path)):
        told = boxes.by_frame(boxes.read_boxes(faces_path(path)))
    elif point is None:
        raise UserError(f"no {os.path.basename(faces_path(path))} and no point in its name tells where the face is")
    else:
        reach = np.array([0.4, 0.5]) * stage.told_size * info.height
        around = np.concatenate([point - reach, point + reach])
    for n, frame in enumerate(frames):
        yield frame, ({0: around} if told is None else told.get(n, {}))


def _choose(found, point, first=False):
    """The face of {face: box} that holds a point: the one with the nearest middle, or the first; None if none does.

    Without a point it is the largest.
    """
    if point is None:
        return max(found, key=lambda face: geometry.areas(found[face])[0])
    holding = [face for face, box in found.items() if boxes.holding(box, *point) is not None]
    if not holding or first:
        return holding[0] if holding else None
    return min(holding, key=lambda face: np.hypot(*((found[face][:2] + found[face][2:]) / 2 - point)))


def check_ready(data_folder, embed_folder, size):
    """Checks embeddings that were made elsewhere, and writes whose they are. Gives their number and [Problem]."""
    folder = os.path.join(data_folder, embed_folder)
    paths = sorted(glob.glob(os.path.join(glob.escape(folder), "*.npy")))
    if not paths:
        raise UserError(f"{folder}: no .npy of embeddings; put them there")
    given = embedders.read_card(folder)
    if given is not None and given["size"] != size:
        raise UserError(f"{folder}: {embedders.CARD} says {given['size']} numbers, --size {size} was given")
    problems = []
    for path in paths:
        try:
            embedders.read_embedding(path, PART_FRAMES, size)
        except UserError as error:
            stem, _, part = stem_of(path).rpartition("_part")
            problems.append(Problem(stem or part, str(error).removeprefix(f"{path}: "), int(part) if stem else None))
    write_corrupt(data_folder, STAGE, problems)
    if given is None:
        embedders.write_card(folder, {"name": "npy", "size": size, "standardised": True, "missing_is_black": False})
    return len(paths) - len(problems), problems


def define_flags(names=("mouth", "dlib", "npy")):
    flags.DEFINE_string("data_folder", "faces", "folder of the clips")
    flags.DEFINE_string("embed_folder", EMBED, "folder of the embeddings, in the data folder")
    flags.DEFINE_enum("embedder", names[0], names, "what turns faces into numbers")
    flags.DEFINE_integer("size", 512, "with --embedder npy: numbers of a frame", lower_bound=1)
    flags.DEFINE_enum("detector", "mtcnn", DETECTORS, "what says where faces are")
    flags.DEFINE_float(
        "told_size", 0.5, "with --detector told and no boxes: the face's height as share of the picture's"
    )
    flags.DEFINE_integer("most_missing", 20, "frames of a piece of 75 that may lack the face", lower_bound=0)
    flags.DEFINE_integer("smallest_face", 24, "pixels of the shorter side of its box", lower_bound=1)
    flags.DEFINE_bool("any_frame_rate", False, "take clips of other rates than 25 frames/s, by the times of frames")
    flags.DEFINE_bool("parity", False, "the reference's choice of the face, in every frame for itself")
    flags.DEFINE_bool("retry", False, "try again what was found unusable")
    flags.DEFINE_integer("num_workers", 0, "processes; 0: one for every core", lower_bound=0)


def run_stage(values, embedder):
    """Runs the stage with the flags of `define_flags`; `embedder` makes the embedder."""
    stage = FaceStage(
        values.data_folder, embedder, values.embed_folder, values.detector, values.told_size, values.most_missing,
        values.smallest_face, values.any_frame_rate, values.parity,
    )  # fmt: skip
    report(stage.data_folder, stage.embed_folder, *embed_clips(stage, values.retry, values.num_workers))


def report(data_folder, embed_folder, count, problems):
    say_problems(problems)
    folder = os.path.join(data_folder, embed_folder)
    print(f"{folder}: embeddings of {count} pieces, {len(problems)} left out")
    if problems and not count:
        raise UserError(f"{folder}: no face could be embedded; the reasons are in {data_folder}/corrupt.csv")


def main(_):
    values = flags.FLAGS
    if values.embedder == "npy":
        found = check_ready(values.data_folder, values.embed_folder, values.size)
        report(values.data_folder, values.embed_folder, *found)
    else:
        run_stage(values, embedders.EMBEDDERS[values.embedder])


if __name__ == "__main__":
    define_flags()
    run_script(main)
