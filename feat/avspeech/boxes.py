"""Boxes of faces, x1, y1, x2, y2 in pixels: files of them, which one holds a point, crops."""

import numpy as np

from feat.avspeech.clips import FRAME_RATE
from feat.base.files import UserError, write_text

HEADER = "frame,face,x1,y1,x2,y2"


def write_boxes(path, lines):
    """Writes [(frame, face, x1, y1, x2, y2)] as CSV with a header."""
    text = "".join(f"{int(n)},{int(face)},{x1:.1f},{y1:.1f},{x2:.1f},{y2:.1f}\n" for n, face, x1, y1, x2, y2 in lines)
    write_text(path, HEADER + "\n" + text)


def read_boxes(path):
    """[(frame, face, x1, y1, x2, y2)] of a file of `write_boxes`.

    Raises:
      UserError: it is no such file.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            rows = [line.split(",") for line in file.read().split("\n")[1:] if line.strip()]
        if any(len(row) != 6 for row in rows):
            raise ValueError("a line has not 6 fields")
        return [(int(row[0]), int(row[1]), *map(float, row[2:])) for row in rows]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a table of {HEADER} ({error}); make it again") from error


def shifted(lines, start, end):
    """Lines of the frames from `start` to `end` s, counted anew."""
    first, last = round(start * FRAME_RATE), round(end * FRAME_RATE)
    return [(n - first, *rest) for n, *rest in lines if first <= n < last]


def by_frame(lines):
    """{frame: {face: float64 [4]}}."""
    frames = {}
    for n, face, *box in lines:
        frames.setdefault(int(n), {})[int(face)] = np.array(box, np.float64)
    return frames


def holding(boxes, x, y):
    """Which of [n, 4] holds the point (x, y) in pixels: the first; None if none does."""
    boxes = np.reshape(boxes, (-1, 4))
    inside = (boxes[:, 0] <= x) & (x <= boxes[:, 2]) & (boxes[:, 1] <= y) & (y <= boxes[:, 3])
    return int(np.argmax(inside)) if inside.any() else None


def crop(frame, box, size, margin=0.0, square=False):
    """The face in a frame.

    Args:
      frame: uint8 [height, width, 3].
      box: [4], x1, y1, x2, y2; cut to the frame and to whole pixels, right and bottom exclusive.
      size: pixels of the crop's sides.
      margin: share of the box's sides to add on each of them.
      square: widen the box to a square first.

    Returns:
      uint8 [size, size, 3], by bilinear interpolation, smoothed where it shrinks; None if nothing of the box is inside.
    """
    from PIL import Image

    if margin or square:
        middle, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
        half = (0.5 + margin) * 2 * (np.full(2, half.max()) if square else half)
        box = np.concatenate([middle - half, middle + half])
    height, width = frame.shape[:2]
    x1, y1 = int(max(box[0], 0)), int(max(box[1], 0))
    x2, y2 = int(min(box[2], width)), int(min(box[3], height))
    if x2 <= x1 or y2 <= y1:
        return None
    piece = Image.fromarray(np.ascontiguousarray(frame[y1:y2, x1:x2]))
    return np.asarray(piece.resize((size, size), Image.Resampling.BILINEAR))


def largest_face(frames):
    """(x, y), as fractions, of the middle of the largest face in the first of `frames` that has one, or None."""
    from feat.avspeech.detector import made_detector

    for frame in frames:
        found = made_detector()(frame).boxes
        if len(found):
            height, width = frame.shape[:2]
            x1, y1, x2, y2 = found[0]
            return (x1 + x2) / 2 / width, (y1 + y2) / 2 / height
    return None
