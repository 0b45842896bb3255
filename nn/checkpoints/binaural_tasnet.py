"""Checkpoints of Binaural TasNet by SpeechBrain, folders with a file for each part: names of weights, and sizes."""

import glob
import os
import pathlib
import re

from models.binaural_tasnet.network import EARS
from nn.checkpoints.torch_file import (
    _CONV,
    _NORM,
    _PLAIN_CONV,
    _SLOPE,
    ArrayReader,
    _blocks,
    _count,
    _names,
    tensors,
)

# Of a folder of SpeechBrain.
PARTS = tuple(part + side for part in ("encoder", "masknet", "decoder") for side in "LR")


def find_folder(path):
    """The folder of a checkpoint of SpeechBrain: `path`, or the best of those in it; None if there is none.

    Best is the lowest `snr`, a loss, of CKPT.yaml.
    """

    def is_whole(folder):
        return all(map(os.path.isfile, part_files(folder).values()))

    if is_whole(path):
        return path
    found = [folder for folder in sorted(glob.glob(os.path.join(glob.escape(path), "CKPT+*"))) if is_whole(folder)]
    return min(found, key=_stored_loss, default=None)


def part_files(folder):
    """{part: file} of a folder of SpeechBrain."""
    return {part: os.path.join(folder, part + ".ckpt") for part in PARTS}


def named_wiring(folder):
    """Says "cross" or "parallel" of a folder of SpeechBrain, as its experiment is named; None if nothing tells.

    The weights of both look alike. `experiment_name` of hyperparams.yaml, two folders up at most, says it, or else
    the name of the nearest folder that holds one of the words: results/convtasnet-cross/1234/save/CKPT+...
    """
    path = pathlib.Path(os.path.abspath(folder))
    folders = [path, *path.parents]
    names = [*map(_experiment_name, folders[:3]), *(folder.name for folder in folders)]
    return next((wiring for name in names for wiring in ("cross", "parallel") if wiring in name.lower()), None)


def _experiment_name(folder):
    """`experiment_name` of hyperparams.yaml, empty if it does not say."""
    try:
        text = (folder / "hyperparams.yaml").read_text(encoding="utf-8")
        return re.search(r"^experiment_name:(.*)", text, re.MULTILINE).group(1)
    except (OSError, AttributeError, ValueError):
        return ""


def _stored_loss(folder):
    """`snr` of CKPT.yaml, infinite if it does not say."""
    try:
        with open(os.path.join(folder, "CKPT.yaml"), encoding="utf-8") as file:
            return float(re.search(r"^snr:\s*(\S+)", file.read(), re.MULTILINE).group(1))
    except (OSError, AttributeError, ValueError):
        return float("inf")


def speechbrain_names(model):
    """As `seed_names`, for BinauralWSJ0Mix. A projection of features is never saved there; see `settings`."""
    names = {}
    table = [("projection", "crossconv", _CONV)] if model.projected is not None else []
    for ear, side in zip(EARS, "LR"):
        names[f"encoder_{ear}_kernel"] = f"encoder{side}.conv1d.weight"
        names[f"decoder_{ear}_kernel"] = f"decoder{side}.weight"
        ours, theirs = f"separator_{ear}", f"masknet{side}"
        table += [
            (f"{ours}/norm", f"{theirs}.layer_norm", _NORM),
            (f"{ours}/input", f"{theirs}.bottleneck_conv1x1.conv", _PLAIN_CONV),
            (f"{ours}/mask", f"{theirs}.mask_conv1x1.conv", _PLAIN_CONV),
        ]
        for repeat, j in _blocks(model):
            layers = f"{theirs}.temporal_conv_net.temporalblock_{repeat}_{j}.layers"
            parts = [
                ("expand", "conv.conv", _PLAIN_CONV),
                ("expand_prelu", "act", _SLOPE),
                ("expand_norm", "norm", _NORM),
                ("", "DSconv.conv_0.conv", _PLAIN_CONV),
                ("depthwise_prelu", "DSconv.act", _SLOPE),
                ("depthwise_norm", "DSconv.act_0", _NORM),
                ("reduce", "DSconv.conv_1.conv", _PLAIN_CONV),
            ]
            table += [(f"{ours}/block_{repeat}_{j}/{a}".rstrip("/"), f"{layers}.{b}", part) for a, b, part in parts]
    return names | _names(table)


def speechbrain_settings(shapes):
    """Constructor arguments of MimoTasnet that follow from shapes."""
    block = "masknetL.temporal_conv_net.temporalblock_{}.layers.conv.conv.weight"
    filters, _, window = shapes["encoderL.conv1d.weight"]
    outputs, bottleneck, _ = shapes["masknetL.mask_conv1x1.conv.weight"]
    width = shapes["masknetL.bottleneck_conv1x1.conv.weight"][1]
    wiring = "independent" if width == filters else "cross" if "crossconv.weight" in shapes else "parallel"
    return dict(
        wiring=wiring,
        talkers=outputs // width,
        filters=filters,
        window=window,
        bottleneck=bottleneck,
        units=shapes[block.format("0_0")][0],
        taps=shapes["masknetL.temporal_conv_net.temporalblock_0_0.layers.DSconv.conv_0.conv.weight"][2],
        dilations=_count(shapes, re.escape(block.format("0_@")).replace("@", r"(\d+)")),
        repeats=_count(shapes, re.escape(block.format("@_0")).replace("@", r"(\d+)")),
    )


class SpeechbrainReader(ArrayReader):
    """A folder of BinauralWSJ0Mix by SpeechBrain.

    Its settings are all but causal, mask and norm; "cross" looks like "parallel" unless its projection is there, see
    `named_wiring`.
    """

    SOURCE = "a folder of BinauralWSJ0Mix by SpeechBrain"
    MARK = "masknetL.bottleneck_conv1x1.conv.weight"
    variant = "speechbrain"
    system = "mimo_tasnet"

    @staticmethod
    def find_folder(path):
        return find_folder(path)

    @staticmethod
    def files_of(folder):
        """Paths of the files of a folder."""
        return list(part_files(folder).values())

    @classmethod
    def of_folder(cls, folder):
        """Reader of a folder that `find_folder` found."""
        files = part_files(folder)
        return cls(folder, {f"{part}.{name}": x for part, file in files.items() for name, x in tensors(file).items()})

    def reference_names(self, model):
        return speechbrain_names(model)

    def sizes(self):
        return speechbrain_settings(self.shapes)


READERS = (SpeechbrainReader,)
