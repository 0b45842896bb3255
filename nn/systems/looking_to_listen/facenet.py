"""The stage of faces with FaceNet: 512 numbers of whose face it is, for every frame.

    python nn/systems/looking_to_listen/facenet.py --data_folder DATA --face_weights 20180402-114759-vggface2.pt

The network is models/looking_to_listen/facenet.py; its weights are not part of this toolkit. facenet-pytorch publishes
them with its release v2.2.9, as 20180402-114759-vggface2.pt (VGGFace2) and 20180408-102900-casia-webface.pt, which
need PyTorch to be read: pip install -e ".[convert,video]". keras-facenet publishes the same weights with its release
v0.3.1, as 20180402-114759-weights.h5, which needs nothing more. All else is as in feat/avspeech/embed_faces.py.

With --parity pixels go in as they are, from 0 to 255, a missing face is a black square, and the face is chosen in every
frame for itself, as vitrioil/Speech-Separation does; the network was trained with (pixel - 127.5) / 128.
"""

import functools
import os
import re
import zlib

from feat.base.script import run_script

import h5py
import keras
import numpy as np
import tensorflow as tf
from absl import flags

from feat.avspeech import embed_faces
from feat.base.files import UserError
from feat.base.graph import compiled
from models.looking_to_listen.facenet import InceptionResnetV1
from nn.checkpoints import torch_file

CROP = 160  # pixels
BATCH = 75  # crops at once
_NAMES = {"kernel": "weight", "bias": "bias"}  # ours: PyTorch's
_NORM_NAMES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def load_weights(model, arrays, source="weights"):
    """Fills an InceptionResnetV1 from {name: array} of facenet-pytorch.

    Args:
        source: where the arrays are from, for messages.

    Raises:
        UserError: a weight is missing or has another shape.
    """
    if not model.built:
        model(np.zeros((1, CROP, CROP, 3), np.float32))
    for name, layer in model.parts.items():
        for variable in layer.weights:
            inner, kind = variable.path.split("/")[-2:]
            names = _NORM_NAMES if inner in ("bn", "last_bn") else _NAMES
            theirs = ".".join([name, *([inner] if inner in ("conv", "bn") else []), names[kind]])
            value = arrays.get(theirs)
            if value is None:
                raise UserError(f"{source}: has no {theirs}; give weights of facenet-pytorch's InceptionResnetV1")
            value = np.asarray(value, np.float32)
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
            if value.shape != tuple(variable.shape):
                raise UserError(f"{source}: {theirs} has shape {value.shape[::-1]}, {variable.shape[::-1]} is needed")
            variable.assign(value)


def read_keras(path):
    """{name in facenet-pytorch: array, in PyTorch's layout} of a file of keras-facenet.

    Raises:
        UserError: it is no such file.
    """
    arrays = {}

    def visit(place, node):
        if not isinstance(node, h5py.Dataset):
            return
        layer, weight = place.split("/")[0], place.split("/")[-1].split(":")[0]
        name = keras_name(layer)
        if name is None or weight not in _NAMES | _NORM_NAMES:
            return
        is_norm = layer.endswith("_BatchNorm")
        value = np.asarray(node)
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        arrays[f"{name}.{(_NORM_NAMES if is_norm else _NAMES)[weight]}"] = value
        if is_norm:  # it is without a scale there
            arrays.setdefault(f"{name}.weight", np.ones_like(value))

    try:
        with h5py.File(path, "r") as file:
            (file["model_weights"] if "model_weights" in file else file).visititems(visit)
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{path}: no weights of keras-facenet can be read there ({error}); download it again"
        ) from error
    if "last_linear.weight" not in arrays:
        raise UserError(f"{path}: holds no weights of keras-facenet's InceptionResNetV1; check --face_weights")
    return arrays


def keras_name(layer):
    """Name in facenet-pytorch of a layer of keras-facenet; None for one without weights."""
    layer, norm = layer.removesuffix("_BatchNorm"), layer.endswith("_BatchNorm")
    if layer == "Bottleneck":
        return "last_bn" if norm else "last_linear"
    end = ".bn" if norm else ".conv"
    if match := re.fullmatch(r"Conv2d_(\d[ab])_\dx\d", layer):
        return f"conv2d_{match[1]}{end}"
    match = re.fullmatch(r"(Block\d+|Mixed_[67]a)(?:_(\d+))?(?:_Branch_(\d))?_Conv2d_(.+)", layer)
    if not match:
        return None
    kind, number, branch, step = match.groups()
    series = {"Block35": "repeat_1", "Block17": "repeat_2", "Block8": "repeat_3"}
    block = kind.lower() if number is None else f"{series[kind]}.{int(number) - 1}"
    block = "block8" if (kind, number) == ("Block8", "6") else block
    if branch is None:
        return f"{block}.conv2d"
    if step == "1x1" or (kind, branch) == ("Mixed_6a", "0"):
        return f"{block}.branch{branch}{end}"  # the only step
    # Steps are 0a, 0b, 0c and, where the size is halved, 1a, the last.
    last = {("Mixed_6a", "1"): 2, ("Mixed_7a", "2"): 2}.get((kind, branch), 1)
    place = {"0a": 0, "0b": 1, "0c": 2, "1a": last}[step[:2]]
    return f"{block}.branch{branch}.{place}{end}"


class FaceNet:
    """The embedder, see feat/avspeech/embedders.py.

    Args:
        weights: path of the file of facenet-pytorch or keras-facenet, or {name: array} of the former.
        standardised: whether pixels are brought to (pixel - 127.5) / 128; the reference feeds them raw.
        missing_is_black: whether a missing face is a black square instead of zeros.

    Raises:
        UserError: the file cannot be read, or is of another network.
    """

    name = "facenet"
    crop_size = CROP
    margin = 0.0
    square = False
    same_face = 1.0

    def __init__(self, weights, standardised=True, missing_is_black=False, model=None):
        arrays, source = weights, "weights"
        if not isinstance(weights, dict):
            source = weights
            arrays = read_keras(weights) if h5py.is_hdf5(weights) else torch_file.tensors(weights)
        if model is None:
            linear = arrays.get("last_linear.weight")
            model = InceptionResnetV1(512 if linear is None else len(linear), name="facenet")
        load_weights(model, arrays, source)
        self.model, self.size = model, model.dim
        self.standardised, self.missing_is_black = standardised, missing_is_black
        # Of one linear layer: enough to tell one set of weights from another.
        self.identity = {"weights": zlib.crc32(np.ascontiguousarray(arrays["last_linear.weight"]).tobytes())}
        self._run = compiled(
            lambda pixels: model(pixels, training=False), tf.TensorSpec([None, None, None, 3], tf.float32)
        )

    def frames(self, crops):
        pixels = np.asarray(crops, np.float32)
        if self.standardised:
            pixels = (pixels - 127.5) / 128
        parts = [self._run(pixels[i : i + BATCH]).numpy() for i in range(0, len(pixels), BATCH)]
        return np.concatenate(parts) if parts else np.zeros((0, self.size), np.float32)

    def finish(self, values, present):
        return np.asarray(values, np.float32) * np.asarray(present)[:, None]


def define_flags():
    embed_faces.define_flags(names=("facenet",))
    flags.DEFINE_string(
        "face_weights", None, "file of facenet-pytorch or keras-facenet, such as 20180402-114759-vggface2.pt"
    )
    flags.DEFINE_bool("raw_pixels", False, "feed pixels as they are, 0 to 255; on with --parity")


def main(_):
    values = flags.FLAGS
    if not values.face_weights:
        raise UserError("--face_weights is missing: the file 20180402-114759-vggface2.pt of facenet-pytorch's release"
                        " v2.2.9; without weights, feat/avspeech/embed_faces.py has other embedders")  # fmt: skip
    if not os.path.isfile(values.face_weights):
        raise UserError(f"{values.face_weights}: no such file; check --face_weights")
    standardised = not (values.raw_pixels or values.parity)
    keras.config.disable_interactive_logging()
    embed_faces.run_stage(values, functools.partial(FaceNet, values.face_weights, standardised, values.parity))


if __name__ == "__main__":
    define_flags()
    run_script(main)
