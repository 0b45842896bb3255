"""Faces in frames: MTCNN, with the weights in the package mtcnn, and a tracker that seldom needs all of it.

Zhang et al., "Joint face detection and alignment using multitask cascaded convolutional networks", IEEE SPL 2016; sizes
and thresholds are those of facenet-pytorch 2.6.0. The networks are the package's, compiled once; the steps between
them are here, because the package samples its crops without smoothing, which draws boxes together.
"""

import functools
import multiprocessing
from typing import NamedTuple

import numpy as np

from feat.avspeech.geometry import areas, overlaps
from feat.base.files import UserError

PROPOSAL, REFINED, OUTPUT = 12, 24, 48  # pixels that the three networks see
STRIDE = 2  # of the first
DETECT_EVERY = 10  # frames, while faces are followed; others may come
LOOK_EVERY = 5  # frames, while there is none
REMEMBERED = 15  # frames that a lost face keeps its number, if it comes back at its place
SAME_FACE = 0.3  # overlap of a face's boxes in two frames, at least
ONE_FACE = 0.6  # overlap from which on two boxes are one face
# How much wider than the last box the last network looks. At its own boxes, its answers swing to and fro by 5 pixels;
# here they settle.
AROUND = 1.1
KEPT_PROBABILITY = 0.25  # that a face needs to be followed on; less than to be found
STEADY_PLACE, STEADY_SIZE = 0.3, 0.8  # share of the frame before in a box's middle and sides, against trembling


class Found(NamedTuple):
    """Faces of a frame, the largest first.

    Attributes:
      boxes: float64 [n, 4], x1, y1, x2, y2 in pixels.
      probabilities: [n].
      landmarks: [n, 5, 2], x, y of left eye, right eye, nose, left and right corner of the mouth, as in the picture.
    """

    boxes: np.ndarray
    probabilities: np.ndarray
    landmarks: np.ndarray


NONE = Found(np.zeros((0, 4)), np.zeros(0), np.zeros((0, 5, 2)))


class Detector:
    """MTCNN.

    Args:
      smallest: pixels of the smallest face.
      thresholds: probabilities that a face needs in the three networks.
      factor: of one level of the picture's pyramid to the next.

    Raises:
      UserError: the package mtcnn is not installed.
    """

    def __init__(self, smallest=20, thresholds=(0.6, 0.7, 0.7), factor=0.709):
        self.smallest, self.thresholds, self.factor = smallest, thresholds, factor
        self._networks = _networks()

    def __call__(self, frame):
        """Found in a frame, uint8 [height, width, 3] RGB."""
        boxes = self._propose(frame)
        if len(boxes):
            boxes = self._refine(frame, boxes)
        return self.examine(frame, boxes) if len(boxes) else NONE

    def examine(self, frame, boxes, least=None):
        """What the last network alone sees at boxes [n, 4], such as those of the frame before: Found.

        `least` is the probability that a face needs; None: the last of `thresholds`.
        """
        squares = _squares(boxes)
        offsets, landmarks, scores = self._run(2, _patches(frame, squares, OUTPUT))
        kept = scores[:, 1] >= (self.thresholds[2] if least is None else least)
        squares, offsets, landmarks, scores = squares[kept], offsets[kept], landmarks[kept], scores[kept, 1]
        if not len(squares):
            return NONE
        sides = squares[:, 2:] - squares[:, :2]
        points = landmarks.reshape(-1, 2, 5).transpose(0, 2, 1) * sides[:, None] + squares[:, None, :2]
        found = _regressed(squares, offsets)
        kept = _suppress(found, scores, 0.7, smaller=True)
        kept = kept[np.argsort(-areas(found[kept]), kind="stable")]
        return Found(found[kept], scores[kept], points[kept])

    def _propose(self, frame):
        """Candidates [n, 4] from the pyramid."""
        from PIL import Image

        height, width = frame.shape[:2]
        image = Image.fromarray(frame)
        scale = PROPOSAL / self.smallest
        boxes, scores = [], []
        while min(height, width) * scale >= PROPOSAL:
            size = int(width * scale + 1), int(height * scale + 1)
            level = np.asarray(image.resize(size, Image.Resampling.BOX), np.float32)[None]
            offsets, faces = self._run(0, level)
            faces = faces[0, ..., 1]
            rows, columns = np.nonzero(faces >= self.thresholds[0])
            if len(rows):
                corner = STRIDE * np.stack([columns, rows], axis=1)
                cells = np.concatenate([(corner + 1) / scale, (corner + PROPOSAL) / scale], axis=1)
                score = faces[rows, columns]
                kept = _suppress(cells, score, 0.5)
                cells = cells[kept] + offsets[0, rows, columns][kept] * np.tile(cells[kept, 2:] - cells[kept, :2], 2)
                boxes.append(cells)
                scores.append(score[kept])
            scale *= self.factor
        if not boxes:
            return np.zeros((0, 4))
        boxes, scores = np.concatenate(boxes), np.concatenate(scores)
        return boxes[_suppress(boxes, scores, 0.7)]

    def _refine(self, frame, boxes):
        """Candidates that the second network keeps."""
        squares = _squares(boxes)
        offsets, scores = self._run(1, _patches(frame, squares, REFINED))
        kept = scores[:, 1] >= self.thresholds[1]
        squares, offsets, scores = squares[kept], offsets[kept], scores[kept, 1]
        kept = _suppress(squares, scores, 0.7)
        return _regressed(squares[kept], offsets[kept])

    def _run(self, which, pixels):
        return [output.numpy() for output in self._networks[which]((pixels - 127.5) / 128)]


@functools.lru_cache(maxsize=1)
def made_detector():
    """A Detector, made once in a process."""
    return Detector()


@functools.lru_cache(maxsize=1)
def _networks():
    """The three networks, compiled for any number and, the first, any size of pictures."""
    try:
        import tensorflow as tf

        if multiprocessing.parent_process() is not None:
            try:  # one of many processes: the cores are taken
                tf.config.threading.set_intra_op_parallelism_threads(1)
                tf.config.threading.set_inter_op_parallelism_threads(1)
            except RuntimeError:
                pass  # TensorFlow runs already
        from mtcnn.stages import StageONet, StagePNet, StageRNet
    except ImportError as error:
        raise UserError(
            f'{error.name} finds faces and is not installed; get it with: pip install -e ".[video]"'
        ) from error
    networks = []
    for stage, size in ((StagePNet, None), (StageRNet, REFINED), (StageONet, OUTPUT)):
        shape = tf.TensorSpec([None, size, size, 3], tf.float32)
        networks.append(tf.function(stage().model, input_signature=[shape]))
    return networks


def follow_faces(frames, detector, every=None):
    """Follows all faces through frames.

    Between detections only the last network of the detector looks, at where each face was. All of it runs in every
    tenth frame, when a face is lost, and in every fifth frame while one is missing or there is none.

    Args:
      frames: yields uint8 [height, width, 3] RGB.
      detector: Detector.
      every: frames from one detection to the next; None: as above; 1: in all, and faces are numbered by their size.

    Yields:
      frame, {number of the face: box [4]}.
    """
    faces, lost, count, last = {}, {}, 0, -LOOK_EVERY
    for n, frame in enumerate(frames):
        if every == 1:
            yield frame, dict(enumerate(detector(frame).boxes))
            continue
        before = dict(faces)
        faces = _followed(frame, detector, faces)
        lost = {number: value for number, value in lost.items() if n - value[0] <= REMEMBERED}
        due = n - last >= ((every or DETECT_EVERY) if faces and not lost else LOOK_EVERY)
        if due or len(faces) < len(before):
            last = n
            found = detector(frame).boxes
            lost |= {number: (n, box) for number, box in before.items() if number not in faces}
            known = {number: box for number, (_, box) in lost.items()} | faces
            for number, box in _matched(found, known).items():
                if number is None:
                    for new in box:
                        faces[count] = new
                        count += 1
                elif number in lost:
                    faces[number] = box
                    del lost[number]
                else:
                    faces[number] = _steadied(box, before[number])
        yield frame, dict(faces)


def _followed(frame, detector, faces):
    """{face: box} where it is now, of {face: box} in the frame before; those that are gone are left out."""
    if not faces:
        return {}
    found = detector.examine(frame, _scaled(np.stack(list(faces.values())), AROUND), KEPT_PROBABILITY).boxes
    matched = _matched(found, faces)
    return {number: _steadied(box, faces[number]) for number, box in matched.items() if number is not None}


def _steadied(box, before):
    """A box [4] between itself and that of the frame before."""
    middle, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    old_middle, old_half = (before[:2] + before[2:]) / 2, (before[2:] - before[:2]) / 2
    middle += STEADY_PLACE * (old_middle - middle)
    half += STEADY_SIZE * (old_half - half)
    return np.concatenate([middle - half, middle + half])


def _scaled(boxes, factor):
    """Boxes [n, 4] widened about their middles."""
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * factor
    return np.concatenate([middle - half, middle + half], axis=1)


def _matched(found, known):
    """{face: box} of boxes that overlap with known faces, the best first; under None a list of the other boxes."""
    matched, numbers = {}, list(known)
    overlap = overlaps(found, np.reshape([known[number] for number in numbers], (-1, 4)))
    free = set(range(len(found)))
    while overlap.size and overlap.max() >= SAME_FACE:
        i, j = np.unravel_index(np.argmax(overlap), overlap.shape)
        matched[numbers[j]] = found[i]
        free.discard(int(i))
        overlap[i], overlap[:, j] = 0, 0
    taken = np.reshape(list(matched.values()), (-1, 4))
    new = [found[i] for i in sorted(free) if not (overlaps(found[i : i + 1], taken) > ONE_FACE).any()]
    return matched | {None: new}


def _squares(boxes):
    """Boxes widened to squares about their middles."""
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True) / 2
    return np.concatenate([middle - half, middle + half], axis=1)


def _regressed(boxes, offsets):
    return boxes + offsets * np.tile(boxes[:, 2:] - boxes[:, :2], 2)


def _patches(frame, squares, size):
    """What is in squares [n, 4], averaged down to [n, size, size, 3]; black outside the frame."""
    from PIL import Image

    image = Image.fromarray(frame)
    patches = np.zeros((len(squares), size, size, 3), np.float32)
    for patch, (x1, y1, x2, y2) in zip(patches, np.round(squares).astype(int)):
        piece = image.crop((x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)))  # PIL fills what is outside with black
        patch[:] = np.asarray(piece.resize((size, size), Image.Resampling.BOX))
    return patches


def _suppress(boxes, scores, most, smaller=False):
    """Indices of boxes, the best first, without those that overlap with a better one by more than `most`.

    Args:
      smaller: overlap is of the smaller box instead of the union.
    """
    order = np.argsort(-scores, kind="stable")
    overlap = overlaps(boxes, boxes)
    if smaller:
        area = areas(boxes)
        common = overlap * (area[:, None] + area[None]) / (1 + overlap)
        overlap = common / np.maximum(np.minimum(area[:, None], area[None]), 1e-9)
    kept = []
    for i in order:
        if not kept or not (overlap[i, kept] > most).any():
            kept.append(i)
    return np.array(kept, int)
