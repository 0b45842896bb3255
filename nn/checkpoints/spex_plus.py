"""Checkpoints of SpEx+ by ir4kgl/ss_dla and gemengtju/SpEx_Plus: names of weights, and sizes."""

import json
import os
import sys

from feat.base.files import UserError, brief
from models.spex_plus.network import BRANCHES, VARIANTS
from nn.checkpoints.spex_plus_config import MASKS, NORMS
from nn.checkpoints.torch_file import (
    _BLOCK_NORMS,
    _CONV,
    _PLAIN_CONV,
    _SLOPE,
    _TORCH_BATCH_NORM,
    _TORCH_NORM,
    ArrayReader,
    _bank,
    _blocks,
    _count,
    _names,
)

# The file beside a PyTorch checkpoint, where in it the network's arguments are, and which of these the arrays tell too.
TOLD = {
    "authors": ("mdl.json", (), dict(N="filters", X="dilations", B="bottleneck", H="units", P="taps")),
    "seed": ("config.json", ("arch", "args"), dict(embed_dim="filters", B="dilations", R="repeats")),
}
# Our argument: theirs and its values, the default first. Their softmax is over the batch.
TOLD_CHOICES = {
    "norm": ("norm", NORMS),
    "mask": ("non_linear", MASKS | {"softmax": "batch_softmax"}),
    "causal": ("causal", {False: False, True: True}),
}

_missed = set()  # of these files, said once


def told_settings(source, variant, settings):
    """What only a file beside a PyTorch checkpoint tells: ({constructor arguments causal and mask}, sample rate).

    The file is the mdl.json of gemengtju/SpEx_Plus, which tells no rate, or the config.json of ir4kgl/ss_dla. Without
    the first, {}, and a line on stderr says what that means; the second's network knows one mask alone and is never
    causal, so that its arguments matter only where somebody added to them.

    Args:
        settings: what the arrays tell, with which the file must agree.

    Returns:
        Arguments, {} without the file, and Hz, None where it does not tell.

    Raises:
        UserError: the file cannot be understood, or is of another checkpoint.
    """
    name, inside, sizes = TOLD[variant]
    path = os.path.join(os.path.dirname(source), name)
    if not os.path.exists(path):
        if variant == "authors" and path not in _missed:
            _missed.add(path)
            print(
                f"{source}: does not tell its mask and whether it is causal; taken for relu and not causal unless flags"
                f" say otherwise; put the {name} of its training beside it, which tells",
                file=sys.stderr,
                flush=True,
            )
        return {}, None
    try:
        with open(path, encoding="utf-8") as file:
            told = content = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not understood ({brief(error)}); restore it or move it away") from error
    for key in inside:
        told = told.get(key, {}) if isinstance(told, dict) else None
    if not isinstance(told, dict):
        raise UserError(f"{path}: holds no arguments of the network; restore it or move it away")
    chosen = {}
    for argument, (key, choices) in TOLD_CHOICES.items():
        value = told.get(key, next(iter(choices)))
        if not isinstance(value, (str, bool)) or value not in choices:
            raise UserError(f"{path}: {key} is {value!r}; mend it, it can be {', '.join(map(str, choices))}")
        chosen[argument] = choices[value]
    agree = {argument: told[key] for key, argument in sizes.items() if key in told}
    if "norm" in told:
        agree["norm"] = chosen["norm"]
    for argument, value in agree.items():
        if value != settings[argument]:
            raise UserError(
                f"{path}: says {argument} {value}, but {source} has {settings[argument]}; put the file of this"
                " checkpoint there, or move it away"
            )
    return {"causal": chosen["causal"], "mask": chosen["mask"]}, _told_rate(content) if variant == "seed" else None


def _told_rate(content):
    """Hz of the config.json of ir4kgl/ss_dla; None where it tells none that can be."""
    told = content.get("preprocessing")
    rate = told.get("sr") if isinstance(told, dict) else None
    is_rate = isinstance(rate, (int, float)) and not isinstance(rate, bool) and rate > 0 and rate == rate // 1
    return int(rate) if is_rate else None


def seed_names(model):
    """{weight of ours, without the model's name: name in a checkpoint of ir4kgl/ss_dla}."""
    speaker, extractor = "speaker_encoder.layers", "speaker_extractor"
    table = [
        ("speaker_norm", f"{speaker}.0", _TORCH_NORM),
        ("speaker_input", f"{speaker}.1", _CONV),
        ("speaker_output", f"{speaker}.5", _CONV),
        ("classifier", "classificator.layers.0", _CONV),
        ("mixture_norm", f"{extractor}.tail.0", _TORCH_NORM),
        ("mixture_input", f"{extractor}.tail.1", _CONV),
    ]
    for i, block in enumerate(model.speaker_blocks):
        parts = [
            "first_layers.0",
            "first_layers.1",
            "first_layers.2",
            "first_layers.3",
            "first_layers.4",
            "last_layers.0",
        ]
        table += _speaker_block(block, f"speaker_block_{i}", [f"{speaker}.{i + 2}.{part}" for part in parts])
        table += [(f"speaker_block_{i}/skip", f"{speaker}.{i + 2}.last_conv", _PLAIN_CONV)] if block.skip else []
    for repeat, j in _blocks(model):
        theirs = f"{extractor}.tcn.{repeat}." + (f"layers.{j - 1}.layers" if j else "first.layers")
        table += _conv_block(model, f"block_{repeat}_{j}", [f"{theirs}.{i}" for i in range(7)])
    names = {}
    for i, branch in enumerate(BRANCHES):
        table += [(f"mask_{branch}", f"{extractor}.head{i + 1}.0", _CONV)]
        names |= _bank("encoder", branch, f"speech_encoder.{branch}_encoder")
        names |= _bank("decoder", branch, f"speech_decoder.decoder{i + 1}")
    return names | _names(table)


def authors_names(model):
    """As `seed_names`, for gemengtju/SpEx_Plus."""
    table = [
        ("speaker_norm", "aux_enc3.0", _TORCH_NORM),
        ("speaker_input", "aux_enc3.1", _CONV),
        ("speaker_output", "aux_enc3.5", _CONV),
        ("classifier", "pred_linear", _CONV),
        ("mixture_norm", "ln", _TORCH_NORM),
        ("mixture_input", "proj", _CONV),
    ]
    for i, block in enumerate(model.speaker_blocks):
        theirs = f"aux_enc3.{i + 2}"
        parts = ["conv1", "batch_norm1", "prelu1", "conv2", "batch_norm2", "prelu2"]
        table += _speaker_block(block, f"speaker_block_{i}", [f"{theirs}.{part}" for part in parts])
        table += [(f"speaker_block_{i}/skip", f"{theirs}.conv_downsample", _PLAIN_CONV)] if block.skip else []
    for repeat, j in _blocks(model):
        theirs = f"conv_block_{repeat + 1}" + (f"_other.{j - 1}" if j else "")
        parts = ["conv1x1", "prelu1", "lnorm1", "dconv", "prelu2", "lnorm2", "sconv"]
        table += _conv_block(model, f"block_{repeat}_{j}", [f"{theirs}.{part}" for part in parts])
    names = {}
    for i, branch in enumerate(BRANCHES):
        table += [(f"mask_{branch}", f"mask{i + 1}", _CONV)]
        names |= _bank("encoder", branch, f"encoder_1d_{branch}")
        names |= _bank("decoder", branch, f"decoder_1d_{i + 1}")
    return names | _names(table)


def _speaker_block(block, ours, theirs):
    layers = ["conv_1", "norm_1", "prelu_1", "conv_2", "norm_2", "prelu_2"]
    parts = [_PLAIN_CONV, _TORCH_BATCH_NORM, _SLOPE] * 2
    return [(f"{ours}/{layer}", their, part) for layer, their, part in zip(layers, theirs, parts)]


def _conv_block(model, ours, theirs):
    norm = _BLOCK_NORMS[model.settings["norm"]]
    layers = ["expand", "expand_prelu", "expand_norm", "", "depthwise_prelu", "depthwise_norm", "reduce"]
    parts = [_CONV, _SLOPE, norm, _CONV, _SLOPE, norm, _CONV]
    return [(f"{ours}/{layer}".rstrip("/"), their, part) for layer, their, part in zip(layers, theirs, parts)]


def seed_settings(shapes):
    """Constructor arguments of SpexPlus that follow from shapes."""
    encoders = [shapes[f"speech_encoder.{branch}_encoder.weight"] for branch in BRANCHES]
    first = shapes["speaker_extractor.tcn.0.first.layers.0.weight"]
    return VARIANTS["seed"] | dict(
        classes=shapes["classificator.layers.0.weight"][0],
        windows=[shape[2] for shape in encoders],
        filters=encoders[0][0],
        bottleneck=shapes["speaker_extractor.tail.1.weight"][0],
        units=first[0],
        embedding_dim=shapes["speaker_encoder.layers.1.weight"][0],
        speaker_units=shapes["speaker_encoder.layers.5.weight"][1],
        taps=shapes["speaker_extractor.tcn.0.first.layers.3.weight"][2],
        repeats=_count(shapes, r"speaker_extractor\.tcn\.(\d+)\.first\.layers\.0\.weight"),
        dilations=_count(shapes, r"speaker_extractor\.tcn\.0\.layers\.(\d+)\.layers\.0\.weight") + 1,
        norm="global",
    )


def authors_settings(shapes):
    """As `seed_settings`."""
    encoders = [shapes[f"encoder_1d_{branch}.weight"] for branch in BRANCHES]
    norm = "channel"
    if "conv_block_1.lnorm1.gamma" in shapes:
        norm = "global"
    elif "conv_block_1.lnorm1.running_mean" in shapes:
        norm = "batch"
    return VARIANTS["authors"] | dict(
        classes=shapes["pred_linear.weight"][0],
        windows=[shape[2] for shape in encoders],
        filters=encoders[0][0],
        bottleneck=shapes["proj.weight"][0],
        units=shapes["conv_block_1.conv1x1.weight"][0],
        embedding_dim=shapes["aux_enc3.1.weight"][0],
        speaker_units=shapes["aux_enc3.5.weight"][1],
        taps=shapes["conv_block_1.dconv.weight"][2],
        repeats=_count(shapes, r"conv_block_(\d+)\.conv1x1\.weight") - 1,
        dilations=_count(shapes, r"conv_block_1_other\.(\d+)\.conv1x1\.weight") + 1,
        norm=norm,
    )


class SeedReader(ArrayReader):
    """A file of ir4kgl/ss_dla. Its settings are all but causal and mask."""

    SOURCE = "SpEx+ by ir4kgl/ss_dla"
    MARK = "speech_encoder.short_encoder.weight"
    OPTIMIZER = "optimizer"
    variant = "seed"
    system = "spex_plus"

    def reference_names(self, model):
        return seed_names(model)

    def sizes(self):
        return seed_settings(self.shapes)


class AuthorsReader(ArrayReader):
    """A file of gemengtju/SpEx_Plus. Its settings are all but causal and mask."""

    SOURCE = "SpEx+ by gemengtju/SpEx_Plus"
    MARK = "encoder_1d_short.weight"
    OPTIMIZER = "optim_state_dict"
    variant = "authors"
    system = "spex_plus"

    def reference_names(self, model):
        return authors_names(model)

    def sizes(self):
        return authors_settings(self.shapes)


READERS = (SeedReader, AuthorsReader)
