"""All faces of a video through its whole length, with embeddings: what `separate.py --video` goes by.

    python feat/avspeech/tracks.py --video talk.mp4 --thumbnails faces

lists them, and how many frames a second that took.
"""

import os
import time
from dataclasses import dataclass

from feat.base.script import run_script

import numpy as np
from absl import flags

from feat.avspeech import boxes, embedders, geometry
from feat.avspeech.clips import FRAME_RATE, faces_path
from feat.avspeech.video import read_frames, video_info
from feat.base.files import UserError, atomic_path
from feat.base.parallel import progress

THUMBNAIL = 96  # pixels
BATCH = 64  # crops that are embedded at once
LIKENESS = 12  # pixels of the sides of the mean picture that faces are compared by
SAME_LOOK = 0.09  # root mean square difference of such pictures, full scale 1, of one face anywhere in the picture
SAME_LOOK_HERE = 0.18  # and of one that comes back where it left
SAME_PLACE = 0.2  # overlap of boxes, for that


@dataclass(frozen=True)
class Tracks:
    """The faces of a video, from left to right, at 25 frames/s.

    Attributes:
      embeddings: float32 [faces, frames, size]; where a face is not present, what the embedder gives for that.
      present: bool [faces, frames].
      boxes: float32 [faces, frames, 4], x1, y1, x2, y2 in pixels; NaN where a face is not present.
      thumbnails: uint8 [faces, 96, 96, 3], RGB, where the face is largest.
      embedder: {"name", "size", ...}, as in embedder.json.
    """

    embeddings: np.ndarray
    present: np.ndarray
    boxes: np.ndarray
    thumbnails: np.ndarray
    embedder: dict

    @property
    def seconds(self):
        """[faces]: for how long each is seen."""
        return self.present.sum(axis=1) / FRAME_RATE


class _Piece:
    """A face from when it appears until it is lost."""

    def __init__(self):
        self.frames, self.boxes, self.values = [], [], []
        self.look, self.largest, self.thumbnail = np.zeros((LIKENESS, LIKENESS, 3)), 0.0, None

    def add(self, n, frame, box):
        self.frames.append(n)
        self.boxes.append(box)
        small = boxes.crop(frame, box, LIKENESS)
        self.look += 0 if small is None else small / 255
        if geometry.areas(box)[0] > 1.1 * self.largest:
            self.largest = geometry.areas(box)[0]
            self.thumbnail = boxes.crop(frame, box, THUMBNAIL, 0.25, square=True)

    @property
    def mean_look(self):
        return self.look / max(1, len(self.frames))


def find_tracks(path, embedder, detector="mtcnn", *, most=None, shortest_s=0.5):
    """Finds and follows the faces of a video. A face that leaves and comes back is one track.

    Args:
      path: any video; frames are taken at 25 frames/s by their times.
      embedder: see feat/avspeech/embedders.py.
      detector: "mtcnn"; or "told", which takes the boxes of <video>.faces.csv.
      most: of faces to keep, those that are seen longest; None: all.
      shortest_s: seconds for which a face must be seen.

    Returns:
      Tracks.

    Raises:
      UserError: the video cannot be read, has no face, or a package is missing.
    """
    info = video_info(path)
    pieces, waiting, count = {}, [], 0

    def embed_waiting():
        if waiting:
            values = embedder.frames(np.stack([crop for _, crop in waiting]))
            for (piece, _), value in zip(waiting, values):
                piece.values.append(value)
            waiting.clear()

    frames = progress(_found(path, detector), f"faces of {os.path.basename(path)}", round(info.seconds * FRAME_RATE))
    for n, (frame, found) in enumerate(frames):
        count = n + 1
        for number, box in found.items():
            crop = embedders.crop_for(embedder, frame, box)
            if crop is not None:
                piece = pieces.setdefault(number, _Piece())
                piece.add(n, frame, box)
                waiting.append((piece, crop))
        if len(waiting) >= BATCH:
            embed_waiting()
    embed_waiting()
    long_enough = [piece for _, piece in sorted(pieces.items()) if len(piece.frames) >= shortest_s * FRAME_RATE]
    if not long_enough:
        seen = max((len(piece.frames) for piece in pieces.values()), default=0) / FRAME_RATE
        raise UserError(
            f"{path}: no face is seen for {shortest_s:g} s" + (f", only for {seen:.2f} s" if seen else "")
            + "; give a video that shows the talkers' faces"
        )  # fmt: skip
    tracks = _joined(long_enough, embedder.same_face)
    tracks = sorted(tracks, key=lambda pieces: -sum(len(piece.frames) for piece in pieces))[:most]
    tracks.sort(key=lambda pieces: np.mean([box[0] + box[2] for piece in pieces for box in piece.boxes]))
    return _assembled(tracks, count, embedder)


def _found(path, detector):
    """Yields every frame and {face: box}."""
    if detector == "mtcnn":
        from feat.avspeech.detector import follow_faces, made_detector

        yield from follow_faces(read_frames(path), made_detector())
        return
    told = boxes.by_frame(boxes.read_boxes(faces_path(path)))
    for n, frame in enumerate(read_frames(path)):
        yield frame, told.get(n, {})


def _joined(pieces, same_face=None):
    """Groups [_Piece] of one face, never two that are seen at once.

    They are of one face if their mean embeddings lie within `same_face`; where that is None, if they look alike, for
    which less is enough where a face comes back at the place it left.
    """
    tracks = []
    for piece in sorted(pieces, key=lambda piece: piece.frames[0]):
        seen = set(piece.frames)
        apart = [track for track in tracks if not seen & {n for part in track for n in part.frames}]
        difference = [_difference(piece, track, same_face) for track in apart]
        if difference and min(difference) < 1:
            apart[int(np.argmin(difference))].append(piece)
        else:
            tracks.append([piece])
    return tracks


def _difference(piece, track, same_face):
    """Of a piece from a track; below 1 they are taken for one face."""
    if same_face is not None:
        values = np.concatenate([part.values for part in track])
        return np.linalg.norm(np.mean(piece.values, axis=0) - values.mean(axis=0)) / same_face
    look = np.mean([part.mean_look for part in track], axis=0)
    here = geometry.overlaps(piece.boxes[0], track[-1].boxes[-1])[0, 0] >= SAME_PLACE
    return np.sqrt(np.mean((piece.mean_look - look) ** 2)) / (SAME_LOOK_HERE if here else SAME_LOOK)


def _assembled(tracks, count, embedder):
    size = tracks[0][0].values[0].shape[0]
    present = np.zeros((len(tracks), count), bool)
    places = np.full((len(tracks), count, 4), np.nan, np.float32)
    embeddings, thumbnails = [], []
    for i, track in enumerate(tracks):
        values = np.zeros((count, size), np.float32)
        if embedder.missing_is_black:
            values[:] = embedder.frames(np.zeros((1, embedder.crop_size, embedder.crop_size, 3), np.uint8))
        for piece in track:
            values[piece.frames], places[i, piece.frames] = piece.values, piece.boxes
            present[i, piece.frames] = True
        shown = np.ones(count, bool) if embedder.missing_is_black else present[i]
        embeddings.append(embedder.finish(values, shown))
        thumbnails.append(max(track, key=lambda piece: piece.largest).thumbnail)
    return Tracks(np.stack(embeddings), present, places, np.stack(thumbnails), embedders.card(embedder))


def write_thumbnails(tracks, folder):
    """Writes face_1.png, face_2.png, ... of Tracks, from left to right; gives their paths."""
    from PIL import Image

    paths = []
    for i, thumbnail in enumerate(tracks.thumbnails, start=1):
        paths.append(os.path.join(folder, f"face_{i}.png"))
        with atomic_path(paths[-1]) as temporary:
            Image.fromarray(thumbnail).save(temporary)
    return paths


def define_flags():
    flags.DEFINE_string("video", None, "any video")
    flags.DEFINE_enum("detector", "mtcnn", ("mtcnn", "told"), "what says where faces are; told: <video>.faces.csv")
    flags.DEFINE_string("thumbnails", None, "folder for a picture of every face")


def main(_):
    values = flags.FLAGS
    if not values.video:
        raise UserError("--video is missing; see the example in --help")
    embedder = embedders.Mouth()
    if values.detector == "mtcnn":
        from feat.avspeech.detector import made_detector

        made_detector()(np.zeros((64, 64, 3), np.uint8))  # its start is not what is timed
    wall, cpu = time.perf_counter(), time.process_time()
    tracks = find_tracks(values.video, embedder, values.detector)
    frames = tracks.present.shape[1]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    for i, (seconds, present, places) in enumerate(zip(tracks.seconds, tracks.present, tracks.boxes), start=1):
        x1, y1, x2, y2 = np.median(places[present], axis=0)
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        print(f"face {i}: seen for {seconds:.2f} s, at {x:.0f}, {y:.0f}, {x2 - x1:.0f} pixels broad")
    if values.thumbnails:
        print("\n".join(write_thumbnails(tracks, values.thumbnails)))
    print(f"{frames} frames, {frames / wall:.0f} a second, {frames / cpu:.0f} a second of the processor's time")


if __name__ == "__main__":
    define_flags()
    run_script(main)
