"""Checkpoints: saving, finding, describing and loading, ours and those of the original code.

A checkpoint is a tf.train.Checkpoint prefix, exp/<exp_name>/models/<time_stamp>/<exp_name>_model.ckpt_step_<N>,
with the weights, the optimiser's variables and the state of the training loop as JSON. `config.json`
beside it says which system it is, its constructor arguments and its sample rate; the text file `best`
names the checkpoint with the best validation score and may be given wherever a prefix may.

A checkpoint of the original (TF 1.15 Saver), or of a reference implementation in PyTorch, is told by the names
inside.
"""

import glob
import json
import os
import re
import shutil
import tempfile
import weakref

import numpy as np
import tensorflow as tf

from feat.base.files import UserError, brief, unreadable, write_text
from nn.checkpoints import deep_casa

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
LOOP_STATE = "loop" + SUFFIX
SAVING = ".saving_"  # start of the folder in which a checkpoint is written, before it is moved into place
INDEX, DATA = ".index", ".data-00000-of-00001"
THRESHOLD = ".threshold.json"  # see nn.systems.spex_plus.recordings


class DamagedError(UserError):
    """A checkpoint that is there, but not whole."""


def weight_names(variables):
    """{name without the model's own: variable} of Keras variables."""
    return {variable.path.split("/", 1)[1]: variable for variable in variables}


def save(prefix, model, optimizer, loop_state, step_state=None):
    """Writes a checkpoint, whole or not at all.

    Args:
        loop_state: what JSON can hold.
        step_state: {name: tf.Variable}, see nn.training.step.TrainStep.state.
    """
    folder, name = os.path.split(prefix)
    os.makedirs(folder, exist_ok=True)
    temporary = tempfile.mkdtemp(prefix=SAVING, dir=folder)
    try:
        tf.train.Checkpoint(
            weights={name: v.value for name, v in weight_names(model.variables).items()},
            optimizer={v.path: v.value for v in optimizer.variables},
            step=dict(step_state or {}),
            loop=tf.Variable(json.dumps(loop_state)),
        ).write(os.path.join(temporary, name))
        # The index last: a prefix without one is no checkpoint.
        for suffix in (DATA, INDEX):
            os.replace(os.path.join(temporary, name + suffix), prefix + suffix)
    except tf.errors.OpError as error:
        raise UserError(
            f"{prefix}: cannot be written ({brief(error)}); make room, then run the same command again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def size_bytes(model, optimizer, step_state):
    """Of a checkpoint of these, about."""
    variables = [*model.variables, *optimizer.variables, *step_state.values()]
    return sum(4 * int(np.prod(variable.shape)) for variable in variables)


def remove_leftovers(folder):
    """Deletes what a run that was killed while saving left in a folder."""
    for leftover in glob.glob(os.path.join(glob.escape(folder), SAVING + "*")):
        shutil.rmtree(leftover, ignore_errors=True)


def remove(prefix):
    """Deletes a checkpoint and what was measured with it."""
    for suffix in (INDEX, DATA, THRESHOLD):
        if os.path.exists(prefix + suffix):
            os.remove(prefix + suffix)


def write_config(folder, system, model, **more):
    """Writes config.json: the system, the model's constructor arguments and what else inference needs."""
    config = {"system": system, "model": dict(model.settings), **more}
    write_text(os.path.join(folder, "config.json"), json.dumps(config, indent=1) + "\n")


def read_config(prefix):
    """The config.json beside a checkpoint, or None if there is none, as beside one of the original."""
    path = os.path.join(os.path.dirname(resolve(prefix)), "config.json")
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        # Reference implementations too put a file of this name beside their checkpoints.
        return config if "system" in config and "model" in config else None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); restore it or train again") from error


def mark_best(prefix):
    """Lets the file `best` beside a checkpoint name it."""
    folder, name = os.path.split(prefix)
    write_text(os.path.join(folder, "best"), name + "\n")


def resolve(prefix):
    """The prefix itself, or what the pointer file `best` stands for; .index and data suffixes are cut off."""
    for suffix in (INDEX, DATA, ".meta"):
        prefix = prefix.removesuffix(suffix)
    if os.path.basename(prefix) == "best" and os.path.isfile(prefix):
        with open(prefix, encoding="utf-8") as file:
            return os.path.join(os.path.dirname(prefix), file.read().strip("\r\n"))
    return prefix


def numbered(folder):
    """[(step, prefix)] of the checkpoints in a folder, by step."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    matches = [re.fullmatch(r"(.*_model\.ckpt_step_(\d+))\.index", name) for name in names]
    return sorted((int(match[2]), os.path.join(folder, match[1])) for match in matches if match)


def require(prefix):
    """Raises UserError unless there is a checkpoint."""
    prefix = resolve(prefix)
    if not os.path.exists(prefix + INDEX):
        raise UserError(f"{prefix}: no checkpoint here ({prefix}{INDEX} is missing); give the prefix without .index")


class Reader:
    """The arrays of a checkpoint by name.

    Raises:
        UserError: it is missing or cannot be opened.
        DamagedError: it cannot be read whole.
    """

    training = None  # a file of PyTorch says how far it was trained, see nn.checkpoints.torch_file.training_of

    def __init__(self, prefix):
        self.prefix = resolve(prefix)
        require(prefix)
        files = [self.prefix + INDEX, *glob.glob(glob.escape(self.prefix) + ".data-*-of-*")]
        for path in files:
            try:
                open(path, "rb").close()
            except FileNotFoundError as error:  # what it links to is gone
                raise self._broken() from error
            except OSError as error:
                raise UserError(unreadable(path, error)) from error
        try:
            self._reader = tf.train.load_checkpoint(self._plain_prefix(files))
            self.shapes = self._reader.get_variable_to_shape_map()
        except (tf.errors.OpError, RuntimeError, ValueError, IndexError) as error:
            raise self._broken() from error

    def __call__(self, name):
        try:
            return self._reader.get_tensor(name)
        except (tf.errors.OpError, RuntimeError, ValueError, IndexError) as error:
            raise self._broken() from error

    def _plain_prefix(self, files):
        """The prefix, or where its name is a pattern to TensorFlow, which would look for others: a link to it."""
        if not re.search(r"[][*?\\]", self.prefix):
            return self.prefix
        folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        plain = os.path.join(folder, "model")
        for path in files:
            os.symlink(os.path.abspath(path), plain + path[len(self.prefix) :])
        return plain

    def _broken(self):
        return DamagedError(f"{self.prefix}: damaged or half-written; give another checkpoint")

    @property
    def is_reference(self):
        """Whether the original code wrote it."""
        return any(name.startswith(tuple(deep_casa.STAGES)) for name in self.shapes)

    @property
    def system(self):
        """Says "dense_unet" or "sequential_grouping" if the original wrote it, what config.json says otherwise."""
        for scope, system in deep_casa.STAGES.items():
            if any(name.startswith(scope) for name in self.shapes):
                return system
        return (read_config(self.prefix) or {}).get("system", "unknown")

    def reference_names(self, model):
        """{weight of ours: name(s) here}, of a checkpoint of the original."""
        return deep_casa.reference_names(model)

    def restore_slots(self, model, optimizer):
        """Assigns the state of the original's optimiser; says whether the checkpoint and the optimiser have it."""
        return deep_casa.restore_slots(self, self.shapes, model, optimizer)

    def is_surplus(self, name):
        """Whether a name that no weight of the model has asked for is a weight that the model lacks."""
        if self.is_reference:
            return not name.endswith(deep_casa.NOT_WEIGHTS)
        return name.startswith("weights/")


def _ours(group, name):
    return group + "/" + name.replace(".", "..").replace("/", ".S") + SUFFIX


def require_system(prefix, found, wanted):
    """Raises UserError unless a checkpoint is of the system that is wanted."""
    if found != wanted:
        raise UserError(f"{prefix}: holds {found}, but this script needs {wanted}; give a checkpoint of it")


def restore_weights(reader, system, model, averaged=False, may_differ=()):
    """Assigns the weights of a checkpoint to a model.

    Args:
        averaged: take their moving average, if the checkpoint holds one.
        may_differ: layers that are left as they are if they are of another size.

    Raises:
        UserError: it is of another system or another size.
    """
    require_system(reader.prefix, reader.system, system)
    for name, variable, array in _matched(reader, model.variables, "weights", model):
        if array.size != np.prod(variable.shape):
            if name.split("/")[0] in may_differ:
                continue
            if name == "classifier/kernel" and array.shape[0] == variable.shape[0]:
                raise UserError(
                    f"{reader.prefix}: tells {array.shape[-1]} speakers apart, the model of these flags"
                    f" {variable.shape[-1]}; give --classes {array.shape[-1]}, or --load to take the rest alone"
                )
            raise UserError(
                f"{reader.prefix}: {name} has shape {tuple(array.shape)}, the model of these flags"
                f" {tuple(variable.shape)}; use the flags that it was trained with"
            )
        if not np.isfinite(array).all():
            raise UserError(f"{reader.prefix}: {name} holds NaN or infinite numbers; give another checkpoint")
        average = _ours("step", name)
        if averaged and average in reader.shapes:
            array = reader(average)
        variable.assign(np.reshape(array, variable.shape))


def _matched(reader, variables, group, model):
    """(name, variable, array of the checkpoint) for every variable but random states that are not there."""
    names = reader.reference_names(model) if reader.is_reference else None
    used = set()

    def read(name):
        if name not in reader.shapes:
            raise UserError(
                f"{reader.prefix}: {name} is missing; it was trained with other flags"
                " (layers, blocks, channels, causal or talkers)"
            )
        used.add(name)
        return reader(name)

    for name, variable in weight_names(variables).items():
        if names is None:
            yield name, variable, read(_ours(group, name))
        elif name in names and not (name.startswith("projection/") and names[name] not in reader.shapes):
            yield name, variable, deep_casa.join(names[name], read)
    surplus = sorted(name for name in set(reader.shapes) - used if reader.is_surplus(name))
    if surplus:
        raise UserError(
            f"{reader.prefix}: holds {len(surplus)} weights that the model of these flags lacks, such as"
            f" {surplus[0]}; use the flags that it was trained with"
        )


def restore_optimizer(reader, model, optimizer):
    """Assigns the optimiser's variables of a checkpoint; says whether it holds those of such an optimiser."""
    if not reader.is_reference:
        names = {v.path: _ours("optimizer", v.path) for v in optimizer.variables}
        if not set(names.values()) <= set(reader.shapes):
            return False
        for variable in optimizer.variables:
            variable.assign(reader(names[variable.path]))
        return True
    return reader.restore_slots(model, optimizer)


def restore_step(reader, step_state):
    """Assigns the variables of nn.training.step.TrainStep.state; says whether the checkpoint holds just these."""
    names = {_ours("step", name): variable for name, variable in step_state.items()}
    if set(names) != {name for name in reader.shapes if name.startswith("step/")}:
        return False
    for name, variable in names.items():
        variable.assign(reader(name))
    return True


def read_loop_state(reader):
    """State of the training loop, or None for a checkpoint of the original."""
    return json.loads(reader(LOOP_STATE)) if LOOP_STATE in reader.shapes else None


def training_state(reader, steps):
    """{field: value} of a nn.training.task.LoopState in which training goes on elsewhere; None if nothing tells.

    Args:
        steps: of an epoch there; what was done here counts in epochs.
    """
    if reader.training is not None:
        done = reader.training.get("epochs")
        return None if done is None else {"step": done * steps + 1, "rate": reader.training["rate"]}
    stored = read_loop_state(reader)
    if stored is None:
        return None
    kept = ("step", "rate", "plateau_loss", "bad_epochs")
    state = {name: stored["state"][name] for name in kept if name in stored["state"]}
    if epoch := stored.get("epoch"):  # of other batches or another list: at the same place of as many epochs
        state["step"] = (state["step"] - 1) * steps // (epoch["examples"] // epoch["batch_size"]) + 1
    return state


def latest_whole(folder):
    """Reader of the newest checkpoint of a folder that can be read whole, or None; says which it passes by."""
    for _, prefix in reversed(numbered(folder)):
        try:
            reader = Reader(prefix)
            for name in reader.shapes:
                reader(name)  # its checksums are compared
            return reader
        except DamagedError:
            print(f"warning: {prefix}: damaged or half-written; it is passed over")
    return None
