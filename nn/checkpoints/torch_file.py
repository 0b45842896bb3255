"""Reads checkpoints that PyTorch wrote.

Each reference implementation has a subclass of ArrayReader in nn/checkpoints/<system>.py. Which one a file is of, and
the sizes of its network, follow from the names and shapes inside. Files are read with torch's `weights_only`, which
runs nothing that a file may hold. torch is needed for this alone: pip install "deep-casa[convert]".
"""

import os
import pickle
import re
import zipfile

import numpy as np

from feat.base.files import UserError, brief

WEIGHTS = ("state_dict", "model_state_dict")  # under which files keep them
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # what optimisers do not know


def is_torch_file(path):
    """Whether a path is a file that torch.save wrote, by its first bytes."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        start = file.read(4)
    return start[:2] == b"PK" or start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04")


class ArrayReader:
    """The arrays of a PyTorch checkpoint by name, their axes reversed, which makes kernels channels-last.

    It has the same interface as nn.checkpoints.ours.Reader. Each reference implementation has a subclass, in
    nn/checkpoints/<system>.py, which lists them as READERS.

    Args:
        prefix: name of the file, for messages.
        arrays: {name: array}, in PyTorch's layout.

    Attributes:
        SOURCE: which implementation it is, for messages.
        MARK: name of a weight that files of this implementation alone have.
        OPTIMIZER: key of the file under which the state of the optimiser is; None if training does not go on from it.
        variant: short name of the implementation.
        system: name that our config.json gives to such a network.
        training: see `training_of`; {} if the file does not tell.
    """

    SOURCE = variant = system = MARK = OPTIMIZER = None
    is_reference = True

    def __init__(self, prefix, arrays):
        self.prefix = prefix
        self.training = {}
        self.arrays = {
            name.removeprefix("module."): np.asarray(array)
            for name, array in arrays.items()
            if not name.endswith("num_batches_tracked")
        }
        self.shapes = {name: array.shape for name, array in self.arrays.items()}

    @classmethod
    def holds(cls, names):
        """Whether a file with weights of these names is of this implementation."""
        return any(name.removeprefix("module.") == cls.MARK for name in names)

    @classmethod
    def of_file(cls, path, stored):
        """Reader of what torch.save was given for a file."""
        reader = cls(path, arrays_of(stored))
        if cls.OPTIMIZER:
            reader.training = training_of(stored, cls.OPTIMIZER)
        return reader

    @staticmethod
    def find_folder(path):
        """The folder of a checkpoint that consists of several files: `path`, or the best below it; else None."""
        return None

    def __call__(self, name):
        return self.arrays[name].T

    def reference_names(self, model):
        """{weight of ours: name here}."""
        raise NotImplementedError

    def sizes(self):
        """Constructor arguments that the shapes of the arrays tell. Raises KeyError where arrays are missing."""
        raise NotImplementedError

    def restore_slots(self, model, optimizer):
        """Assigns the state of PyTorch's Adam; says whether the file and the optimiser have it."""
        return restore_slots(self, model, optimizer)

    def is_surplus(self, name):
        """Whether a name that no weight of the model has asked for is a weight that the model lacks."""
        return True

    def settings(self):
        """Constructor arguments that the arrays tell.

        Raises:
            UserError: arrays are missing.
        """
        try:
            return self.sizes()
        except KeyError as error:
            raise UserError(f"{self.prefix}: {error.args[0]} is missing in it; download it again") from error


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
        for name, value in weights_of(stored).items():
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
    return arrays_of(load(path))


def load(path):
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


def arrays_of(stored):
    """{name: array} of what a file held."""
    # NumPy knows no bfloat16.
    return {
        name: (value.float() if value.is_floating_point() and value.element_size() == 2 else value).detach().numpy()
        for name, value in weights_of(stored).items()
    }


def weights_of(stored):
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


def _blocks(model):
    """(repeat, place in its series) of every block."""
    settings = model.settings
    return [(i, j) for i in range(settings["repeats"]) for j in range(settings["dilations"])]


# Sizes --------------------------------------------------------------------------------------------


def _count(shapes, pattern):
    """Largest number that the pattern's group takes among the names, plus 1; 0 if none does."""
    found = [re.fullmatch(pattern, name) for name in shapes]
    return max((int(match.group(1)) + 1 for match in found if match), default=0)
