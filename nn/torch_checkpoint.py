"""Checkpoints of the PyTorch reference implementations, by the names of their weights.

SpEx+ has two: ir4kgl/ss_dla ("seed") and gemengtju/SpEx_Plus ("authors"); Binaural TasNet has that of SpeechBrain
("speechbrain"), whose checkpoints are folders with a file for each part; DiffSep has fakufaku/diffusion-separation
("diffsep", see nn.diffsep_checkpoint); Looking to Listen has vitrioil/Speech-Separation and the recipe of asteroid,
which have the same names ("catalyst", after their training loop). Which one it is, and the sizes of the network, follow
from names and shapes inside. Files are read with torch's `weights_only`, which runs nothing that a
file may hold; torch itself is needed for this alone: pip install "deep-casa[convert]".
"""

import glob
import os
import pathlib
import pickle
import re
import zipfile

import numpy as np

from feat.files import UserError, brief
from models.looking_to_listen import AUDIO_LAYERS, PARITY, VIDEO_LAYERS
from models.mimo_tasnet import EARS
from models.spex_plus import BRANCHES, VARIANTS
from nn import diffsep_checkpoint

WEIGHTS = ("state_dict", "model_state_dict")  # under which files keep them
OPTIMIZERS = {"seed": "optimizer", "authors": "optim_state_dict"}  # and the state of the optimiser
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # what optimisers do not know
# Of a folder of SpeechBrain.
PARTS = tuple(part + side for part in ("encoder", "masknet", "decoder") for side in "LR")
SYSTEMS = {
    "seed": "spex_plus",
    "authors": "spex_plus",
    "speechbrain": "mimo_tasnet",
    "catalyst": "looking_to_listen",
}


def is_torch_file(path):
    """Whether a path is a file that torch.save wrote, by its first bytes."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        start = file.read(4)
    return start[:2] == b"PK" or start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04")


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


class ArrayReader:
    """The arrays of a PyTorch checkpoint by name, their axes reversed, which makes kernels channels-last.

    The same interface as nn.checkpoint.Reader.

    Args:
        prefix: name of the file, for messages.
        arrays: {name: array}, in PyTorch's layout.

    Attributes:
        training: of `training_of`, {} if the file does not tell.
    """

    is_reference = True

    def __init__(self, prefix, arrays):
        self.prefix = prefix
        self.training = {}
        self.arrays = {
            name.removeprefix("module."): np.asarray(array)
            for name, array in arrays.items()
            if not name.endswith("num_batches_tracked")
        }
        self.variant = variant_of(self.arrays)
        if self.variant == "catalyst":
            self._add_biases()
        self.shapes = {name: array.shape for name, array in self.arrays.items()}

    @property
    def system(self):
        return SYSTEMS.get(self.variant, "unknown")

    def _add_biases(self):
        """PyTorch's LSTM has two biases, which are only ever added."""
        for name in ("lstm.bias_ih_l0", "lstm.bias_ih_l0_reverse"):
            other = name.replace("_ih_", "_hh_")
            if name in self.arrays and other in self.arrays:
                self.arrays[name.replace("_ih_", "_")] = self.arrays.pop(name) + self.arrays.pop(other)

    def __call__(self, name):
        return self.arrays[name].T

    def reference_names(self, model):
        """{weight of ours: name here}."""
        return NAMES[self.variant](model)

    def is_surplus(self, name):
        """Whether a name that no weight of the model has asked for is a weight that the model lacks."""
        return True

    def settings(self):
        """Constructor arguments that the arrays tell; of SpexPlus all but causal and mask.

        Of MimoTasnet neither these nor norm; "cross" looks like "parallel" unless its projection is there, see
        `named_wiring`.

        Raises:
            UserError: arrays are missing.
        """
        try:
            return SETTINGS[self.variant](self.shapes)
        except KeyError as error:
            raise UserError(f"{self.prefix}: {error.args[0]} is missing in it; download it again") from error


class DiffsepReader(ArrayReader):
    """The same of DiffSep, with the configuration of its training.

    Args:
        config: as of nn.diffsep_checkpoint.configuration, {} if it is not known.
    """

    def __init__(self, prefix, arrays, config=None):
        super().__init__(prefix, diffsep_checkpoint.as_arrays(arrays))
        self.variant = "diffsep"
        self.config = config or {}

    @property
    def system(self):
        return diffsep_checkpoint.system_of(self.shapes)

    def __call__(self, name):
        return diffsep_checkpoint.in_our_layout(name, self.arrays[name])

    def reference_names(self, model):
        """{weight of ours: name here}. Raises UserError for another number of sources."""
        diffsep_checkpoint.check_sources(self, model)
        theirs = {"ncsnpp": diffsep_checkpoint.ncsnpp_name, "cdiffuse": diffsep_checkpoint.cdiffuse_name}[self.system]
        names = (variable.path.split("/", 1)[1] for variable in model.variables)
        return {name: theirs(name) for name in names if not name.endswith("seed_generator_state")}

    def settings(self):
        """Constructor arguments of the network; those that neither configuration nor arrays tell are left out."""
        return diffsep_checkpoint.settings_of(self)


def read(path):
    """ArrayReader of a file, or of a folder that `find_folder` finds.

    Raises:
        UserError: torch is missing, or a file cannot be read or holds no weights that are known.
    """
    folder = find_folder(path) if os.path.isdir(path) else None
    if folder is None:
        stored = _load(path)
        held = stored.get("state_dict") if isinstance(stored, dict) else None
        if isinstance(held, dict) and diffsep_checkpoint.system_of(held):
            weights = diffsep_checkpoint.averaged(path, stored)
            return DiffsepReader(path, _arrays(weights), diffsep_checkpoint.configuration(stored))
        arrays = _arrays(stored)
        if diffsep_checkpoint.system_of(arrays):
            return DiffsepReader(path, arrays)
        reader = ArrayReader(path, arrays)
        if reader.variant in OPTIMIZERS:
            reader.training = training_of(stored, OPTIMIZERS[reader.variant])
    else:
        files = part_files(folder)
        arrays = {f"{part}.{name}": x for part, file in files.items() for name, x in _arrays(_load(file)).items()}
        reader = ArrayReader(folder, arrays)
    if reader.variant is None:
        raise UserError(
            f"{path}: a PyTorch file, but not of SpEx+ by ir4kgl/ss_dla or gemengtju/SpEx_Plus, of Looking to Listen by"
            " vitrioil/Speech-Separation or asteroid, of DiffSep by fakufaku/diffusion-separation, or a folder of"
            " BinauralWSJ0Mix by SpeechBrain; give one of these"
        )
    return reader


def training_of(stored, optimizer):
    """How far the training was that a file was saved in.

    Args:
        stored: what the file held.
        optimizer: under which the state of torch.optim.Adam is.

    Returns:
        {"epochs": done, "rate": the learning rate, "steps": done, "slots": {name of a weight: (mean, mean square) of
        its gradients, as Adam has them}}, {} if the file does not tell.
    """
    try:
        state, groups = stored[optimizer]["state"], stored[optimizer]["param_groups"]
        numbers = [number for group in groups for number in group["params"]]
        names, seen = [], set()
        for name, value in _weights_of(stored).items():
            # One that stands under two names is known to the optimiser once.
            where = value.data_ptr(), tuple(value.shape)
            if not name.endswith(BUFFERS) and where not in seen:
                seen.add(where)
                names.append(name.removeprefix("module."))
        slots = {
            name: tuple(state[number][key].numpy() for key in ("exp_avg", "exp_avg_sq"))
            for name, number in zip(names, numbers, strict=True)
            if number in state
        }
        steps = max((int(each["step"]) for each in state.values()), default=0)
        return {"epochs": int(stored["epoch"]), "rate": float(groups[0]["lr"]), "steps": steps, "slots": slots}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return {}


def restore_slots(reader, model, optimizer):
    """Assigns the state of PyTorch's Adam to ours; says whether the file and the optimiser have it."""
    slots = reader.training.get("slots")
    if not slots or not hasattr(optimizer, "_velocities"):
        return False
    names = reader.reference_names(model)
    pairs = [slots.get(names[weight.path.split("/", 1)[1]]) for weight in model.trainable_variables]
    weights = list(zip(model.trainable_variables, pairs))
    if any(pair is not None and np.size(pair[0]) != np.prod(weight.shape) for weight, pair in weights):
        return False
    for k, variables in enumerate((optimizer._momentums, optimizer._velocities)):
        for variable, pair in zip(variables, pairs):
            array = np.zeros(variable.shape) if pair is None else pair[k].T
            variable.assign(np.reshape(array, variable.shape))
    optimizer.iterations.assign(reader.training["steps"])
    return True


def tensors(path):
    """{name: array} of a file that torch.save wrote, in PyTorch's layout.

    Raises:
        UserError: torch is missing, or the file cannot be read.
    """
    return _arrays(_load(path))


def _load(path):
    """What torch.save was given for a file; for objects of unknown classes, what is known of them."""
    try:
        import torch
    except ImportError as error:
        raise UserError(f'{path}: a PyTorch checkpoint; to read it, pip install "deep-casa[convert]"') from error
    try:
        # Configuration objects of the project that wrote the file, which nothing is wanted of. Files of before
        # PyTorch 1.6 cannot be asked for them.
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []
        with torch.serialization.safe_globals([(_stub(), name) for name in unknown]):
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: no checkpoint that PyTorch can read ({brief(error)}); download it again") from error
    return stored


def _arrays(stored):
    """{name: array} of what a file held."""
    # NumPy knows no bfloat16.
    return {
        name: (value.float() if value.is_floating_point() and value.element_size() == 2 else value).detach().numpy()
        for name, value in _weights_of(stored).items()
    }


def _weights_of(stored):
    """{name: tensor} of what a file held."""
    weights = stored
    for key in WEIGHTS:
        if isinstance(stored, dict) and key in stored:
            weights = stored[key]
    if not isinstance(weights, dict):
        return {}
    return {name: value for name, value in weights.items() if hasattr(value, "detach")}


def _stub():
    """A class that takes the place of one that is not here, and keeps its state."""

    class Stub:
        def __init__(self, *arguments, **options):
            pass

        state = None

        def __setstate__(self, state):
            self.state = state

        def __setitem__(self, key, value):
            pass

    return Stub


def variant_of(names):
    """A key of SYSTEMS, or None for something else."""
    for variant, name in (
        ("seed", "speech_encoder.short_encoder.weight"),
        ("authors", "encoder_1d_short.weight"),
        ("speechbrain", "masknetL.bottleneck_conv1x1.conv.weight"),
        ("catalyst", "audio_output.conv1.weight"),
    ):
        if name in names:
            return variant
    return None


# Names --------------------------------------------------------------------------------------------

_NORM = dict(gamma="gamma", beta="beta")
_TORCH_NORM = dict(gamma="weight", beta="bias")
_TORCH_BATCH_NORM = _TORCH_NORM | dict(moving_mean="running_mean", moving_variance="running_var")
_CONV = dict(kernel="weight", bias="bias")
_PLAIN_CONV = dict(kernel="weight")
_SLOPE = dict(slope="weight")
_BLOCK_NORMS = {"global": _NORM, "channel": _TORCH_NORM, "cumulative": _TORCH_NORM, "batch": _TORCH_BATCH_NORM}


def _names(table):
    """{our name: theirs} of rows (our layer, their layer, {our weight: theirs})."""
    return {f"{ours}/{a}".lstrip("/"): f"{theirs}.{b}" for ours, theirs, parts in table for a, b in parts.items()}


def _bank(ours, branch, theirs):
    return {f"{ours}_{branch}_{a}": f"{theirs}.{b}" for a, b in _CONV.items()}


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


def _blocks(model):
    """(repeat, place in its series) of every block."""
    settings = model.settings
    return [(i, j) for i in range(settings["repeats"]) for j in range(settings["dilations"])]


def _speaker_block(block, ours, theirs):
    layers = ["conv_1", "norm_1", "prelu_1", "conv_2", "norm_2", "prelu_2"]
    parts = [_PLAIN_CONV, _TORCH_BATCH_NORM, _SLOPE] * 2
    return [(f"{ours}/{layer}", their, part) for layer, their, part in zip(layers, theirs, parts)]


def _conv_block(model, ours, theirs):
    norm = _BLOCK_NORMS[model.settings["norm"]]
    layers = ["expand", "expand_prelu", "expand_norm", "", "depthwise_prelu", "depthwise_norm", "reduce"]
    parts = [_CONV, _SLOPE, norm, _CONV, _SLOPE, norm, _CONV]
    return [(f"{ours}/{layer}".rstrip("/"), their, part) for layer, their, part in zip(layers, theirs, parts)]


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


def catalyst_names(model):
    """As `seed_names`, for Looking to Listen."""
    table = []
    for stream, layers in (("audio", AUDIO_LAYERS), ("video", VIDEO_LAYERS)):
        for i in range(1, len(layers) + 1):
            table += [
                (f"{stream}_{i}", f"{stream}_output.conv{i}", _CONV),
                (f"{stream}_{i}/norm", f"{stream}_output.batch_norm{i}", _TORCH_BATCH_NORM),
            ]
    for i in range(1, 4):
        table += [(f"dense_{i}", f"fc{i}", _CONV), (f"norm_{i}", f"batch_norm{i}", _TORCH_BATCH_NORM)]
    names = _names([*table, ("mask", "complex_mask_layer", _CONV)])
    for direction, end in (("forward", ""), ("backward", "_reverse")):
        for ours, theirs in (("kernel", "weight_ih"), ("recurrent_kernel", "weight_hh"), ("bias", "bias")):
            names[f"lstm/{direction}_{ours}"] = f"lstm.{theirs}_l0{end}"
    return names


NAMES = {
    "seed": seed_names,
    "authors": authors_names,
    "speechbrain": speechbrain_names,
    "catalyst": catalyst_names,
}


# Sizes --------------------------------------------------------------------------------------------


def _count(shapes, pattern):
    """Largest number that the pattern's group takes among the names, plus 1; 0 if none does."""
    found = [re.fullmatch(pattern, name) for name in shapes]
    return max((int(match.group(1)) + 1 for match in found if match), default=0)


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


def catalyst_settings(shapes):
    """Constructor arguments of LookingToListen that follow from shapes, and what the seed has besides them."""
    units_of_masks, units = shapes["complex_mask_layer.weight"]
    last, video = shapes["audio_output.conv15.weight"][0], shapes["video_output.conv6.weight"][0]
    inputs = shapes["lstm.weight_ih_l0"][1]  # last * bins + faces * video, where faces * bins = units_of_masks / 2
    fitting = [
        faces
        for faces in range(1, inputs // video + 1)
        if units_of_masks % (2 * faces) == 0 and last * units_of_masks // (2 * faces) + faces * video == inputs
    ]
    faces = fitting[0] if fitting else 1
    return PARITY | dict(
        faces=faces,
        embedding_dim=shapes["video_output.conv1.weight"][1],
        channels=shapes["audio_output.conv1.weight"][0],
        last_channels=last,
        video_channels=video,
        lstm_units=shapes["lstm.weight_hh_l0"][1],
        units=units,
        bins=units_of_masks // (2 * faces),
        frames=shapes["batch_norm1.weight"][0],
    )


SETTINGS = {
    "seed": seed_settings,
    "authors": authors_settings,
    "speechbrain": speechbrain_settings,
    "catalyst": catalyst_settings,
}
