"""Finds checkpoints of any kind, and opens them: ours, those of the original code and those of PyTorch.

The variants of PyTorch are known by the names of the weights: SpEx+ by ir4kgl/ss_dla ("seed") and by
gemengtju/SpEx_Plus ("authors"), Binaural TasNet by SpeechBrain ("speechbrain"), Looking to Listen by
vitrioil/Speech-Separation and asteroid ("catalyst"), and DiffSep by fakufaku/diffusion-separation ("diffsep").
"""

import glob
import hashlib
import os

import numpy as np

from feat.base.files import UserError
from nn.checkpoints import binaural_tasnet, diffsep, torch_file
from nn.checkpoints.binaural_tasnet import find_folder, part_files, speechbrain_names, speechbrain_settings
from nn.checkpoints.looking_to_listen import catalyst_names, catalyst_settings
from nn.checkpoints.ours import INDEX, Reader, resolve, restore_weights
from nn.checkpoints.spex_plus import authors_names, authors_settings, seed_names, seed_settings
from nn.checkpoints.torch_file import OPTIMIZERS, _arrays, _load, training_of


def foreign_settings(source, system):
    """(constructor arguments, reader) of a checkpoint of another implementation, which tells them itself.

    Raises:
        UserError: it tells none, or is of another system.
    """
    reader = open_reader(source)
    if reader.system != system or not hasattr(reader, "settings"):
        raise UserError(f"{source}: no config.json beside it; put it back, or give a checkpoint that has one")
    return reader.settings(), reader


def fingerprint(prefix):
    """Name and hash of the contents of a checkpoint: ours, a PyTorch file or a folder of SpeechBrain."""
    files, name = [resolve(prefix) + INDEX], resolve(prefix)
    if torch_file.is_torch_file(prefix):
        # What lies beside it may tell how it computes.
        beside = [os.path.join(os.path.dirname(prefix), told) for told in ("mdl.json", "config.json")]
        files = [prefix, *filter(os.path.exists, beside)]
    if folder := binaural_tasnet.find_folder(prefix):
        files = binaural_tasnet.part_files(folder).values()
        name = os.path.abspath(folder)  # which may tell the wiring
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            digest.update(file.read())
    return f"{name} {digest.hexdigest()}"


def find_best(given):
    """Checkpoints of prefixes and of folders, of which the best of SpeechBrain or else every `best` is looked at.

    Raises:
        UserError: there is none.
    """
    prefixes = []
    for path in map(os.fspath, given):
        below = [path]
        if folder := binaural_tasnet.find_folder(path):
            below = [folder]
        elif os.path.isdir(path):
            below = sorted(glob.glob(os.path.join(glob.escape(path), "**", "best"), recursive=True))
            if not below:
                raise UserError(
                    f"{path}: no checkpoint marked best below it, nor a whole CKPT+... of SpeechBrain in it;"
                    " give the prefix or the folder of one"
                )
        prefixes += below
    return prefixes


def open_reader(prefix):
    """Reader of a checkpoint, ours, the original's or one of PyTorch. Raises UserError."""
    if torch_file.is_torch_file(prefix) or binaural_tasnet.find_folder(prefix):
        return read(prefix)
    return Reader(prefix)


def load_for_inference(prefix, system, model):
    """Assigns the weights of a checkpoint, or their moving average, ours or the original's; gives its Reader."""
    reader = open_reader(prefix)
    restore_weights(reader, system, model, averaged=True)
    return reader


SYSTEMS = {
    "seed": "spex_plus",
    "authors": "spex_plus",
    "speechbrain": "mimo_tasnet",
    "catalyst": "looking_to_listen",
}


def read(path):
    """ArrayReader of a file, or of a folder that `find_folder` finds.

    Raises:
        UserError: torch is missing, or a file cannot be read or holds no weights that are known.
    """
    folder = find_folder(path) if os.path.isdir(path) else None
    if folder is None:
        stored = _load(path)
        held = stored.get("state_dict") if isinstance(stored, dict) else None
        if isinstance(held, dict) and diffsep.system_of(held):
            weights = diffsep.averaged(path, stored)
            return DiffsepReader(path, _arrays(weights), diffsep.configuration(stored))
        arrays = _arrays(stored)
        if diffsep.system_of(arrays):
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


NAMES = {
    "seed": seed_names,
    "authors": authors_names,
    "speechbrain": speechbrain_names,
    "catalyst": catalyst_names,
}


SETTINGS = {
    "seed": seed_settings,
    "authors": authors_settings,
    "speechbrain": speechbrain_settings,
    "catalyst": catalyst_settings,
}


class ArrayReader:
    """The arrays of a PyTorch checkpoint by name, their axes reversed, which makes kernels channels-last.

    The same interface as nn.checkpoints.ours.Reader.

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

    def restore_slots(self, model, optimizer):
        """Assigns the state of PyTorch's Adam; says whether the file and the optimiser have it."""
        return torch_file.restore_slots(self, model, optimizer)

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
        config: as of nn.checkpoints.diffsep.configuration, {} if it is not known.
    """

    def __init__(self, prefix, arrays, config=None):
        super().__init__(prefix, diffsep.as_arrays(arrays))
        self.variant = "diffsep"
        self.config = config or {}

    @property
    def system(self):
        return diffsep.system_of(self.shapes)

    def __call__(self, name):
        return diffsep.in_our_layout(name, self.arrays[name])

    def reference_names(self, model):
        """{weight of ours: name here}. Raises UserError for another number of sources."""
        diffsep.check_sources(self, model)
        theirs = {"ncsnpp": diffsep.ncsnpp_name, "cdiffuse": diffsep.cdiffuse_name}[self.system]
        names = (variable.path.split("/", 1)[1] for variable in model.variables)
        return {name: theirs(name) for name in names if not name.endswith("seed_generator_state")}

    def settings(self):
        """Constructor arguments of the network; those that neither configuration nor arrays tell are left out."""
        return diffsep.settings_of(self)
