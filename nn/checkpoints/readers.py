"""Finds checkpoints of any kind, and opens them: ours, those of the original code and those of PyTorch.

The reference implementations in PyTorch are those that the modules of this package list as READERS.
"""

import glob
import hashlib
import importlib
import os
import pkgutil

from feat.base.files import UserError
from nn import checkpoints
from nn.checkpoints import torch_file
from nn.checkpoints.ours import INDEX, Reader, resolve, restore_weights


def array_readers():
    """Subclasses of ArrayReader of all modules of this package."""
    names = (module.name for module in pkgutil.iter_modules(checkpoints.__path__))
    modules = [importlib.import_module(f"{checkpoints.__name__}.{name}") for name in names if name != "readers"]
    return [reader for module in modules for reader in getattr(module, "READERS", ())]


def find_folder(path):
    """(subclass of ArrayReader, folder) of a checkpoint that is a folder, or lies in one; None if there is none."""
    for reader in array_readers():
        if folder := reader.find_folder(path):
            return reader, folder
    return None


def of_arrays(name, arrays):
    """ArrayReader of {name: array}, in PyTorch's layout; None if no implementation has such names.

    Args:
        name: of where they come from, for messages.
    """
    return next((reader(name, arrays) for reader in array_readers() if reader.holds(arrays)), None)


def read(path):
    """ArrayReader of a file of PyTorch, or of a folder that `find_folder` finds.

    Raises:
        UserError: torch is missing, or a file cannot be read or holds no weights that are known.
    """
    if os.path.isdir(path) and (found := find_folder(path)):
        reader, folder = found
        return reader.of_folder(folder)
    stored = torch_file.load(path)
    names = torch_file.weights_of(stored)
    for reader in array_readers():
        if reader.holds(names):
            return reader.of_file(path, stored)
    known = ", ".join(reader.SOURCE for reader in array_readers())
    raise UserError(f"{path}: a PyTorch file, but not of one of these: {known}; give one of them")


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
    if found := find_folder(prefix):
        kind, folder = found
        files = kind.files_of(folder)
        name = os.path.abspath(folder)  # which may tell how it computes
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
        if found := find_folder(path):
            below = [found[1]]
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
    if torch_file.is_torch_file(prefix) or find_folder(prefix):
        return read(prefix)
    return Reader(prefix)


def load_for_inference(prefix, system, model):
    """Assigns the weights of a checkpoint, or their moving average, ours or the original's; gives its Reader."""
    reader = open_reader(prefix)
    restore_weights(reader, system, model, averaged=True)
    return reader
