"""Starts a run from a checkpoint: from that of its own folder, or from one that a flag names."""

import dataclasses
import json
import os

import tensorflow as tf

from feat.base.files import UserError
from nn.checkpoints import ours as checkpoint
from nn.checkpoints import readers
from nn.training import devices
from nn.training.task import LoopState

# Of a model's constructor arguments those that a run may go on without: they count in training or at its start alone.
MAY_CHANGE = ("dropout", "tap_keep", "initialization", "init_scale", "seed")


def _resume(task, options, step, state):
    """Restores what the folder holds, or else what --resume_model or --load names.

    Returns:
        the LoopState to go on with, and whether it is the folder's own.
    """
    reader = checkpoint.latest_whole(options.folder)
    if reader is None:
        if options.resume_model and options.load:
            raise UserError("--resume_model and --load: give one of them, the checkpoint to start from")
        source = options.resume_model or options.load
        return _start_from(readers.open_reader(source), task, options, step, state) if source else state, False
    config = checkpoint.read_config(reader.prefix) or {}
    # The same command again goes on, also one that started from another checkpoint.
    for flag, given in (("resume_model", options.resume_model), ("load", options.load)):
        if given and given != config.get("started_from") and checkpoint.resolve(given) != reader.prefix:
            raise UserError(
                f"{options.folder}: holds {os.path.basename(reader.prefix)}, so --{flag} {given}"
                " would be passed over; leave it out to go on, or choose another --time_stamp"
            )
    stored = checkpoint.read_loop_state(reader)
    if stored is None:
        raise UserError(
            f"{reader.prefix}: not from this training loop; to start from it, choose another --time_stamp"
            " and give it as --resume_model"
        )
    for flag, value in task.config.items():
        if config.get(flag, value) != value:
            raise UserError(
                f"{options.folder}: trained with --{flag} {config[flag]}, but --{flag} is {value};"
                " give the same, or another --time_stamp"
            )
    checkpoint.restore_weights(reader, task.system, task.model)
    _require_same_model(options, config, task.model)
    if not checkpoint.restore_optimizer(reader, task.model, task.optimizer):
        raise UserError(
            f"{reader.prefix}: holds no state of the optimiser {task.optimizer.name};"
            " use the flags it was trained with, or another --time_stamp"
        )
    if not checkpoint.restore_step(reader, step.state):
        raise UserError(
            f"{reader.prefix}: trained with another --ema_decay or --precision; give the same, or another --time_stamp"
        )
    _require_same_epochs(options, stored.get("epoch", {}), task.epochs)
    state = LoopState(**stored["state"])
    # A run killed right after its best checkpoint was written has not marked it yet.
    best = _prefix(options, state.marked_step)
    if os.path.exists(best + checkpoint.INDEX) and devices.is_chief(options.strategy):
        checkpoint.mark_best(best)
    return state, True


def _start_from(reader, task, options, step, state):
    """Restores a checkpoint of elsewhere; gives the LoopState to start with."""
    may_differ = ("classifier",) if options.load else ()
    checkpoint.restore_weights(reader, task.system, task.model, may_differ=may_differ)
    if options.load:
        step.restart_averages()
        print(f"{reader.prefix}: weights restored; starting at step 1")
        return state
    kept = checkpoint.restore_optimizer(reader, task.model, task.optimizer)
    restored = "weights and optimiser" if kept else "weights"
    stored = checkpoint.training_state(reader, task.epochs.steps) if task.resume_goes_on else None
    if not (stored and checkpoint.restore_step(reader, step.state)):
        step.restart_averages()
    if stored:
        # What is best is measured anew: the validation set may be another.
        state = dataclasses.replace(state, **stored)
        print(f"{reader.prefix}: {restored} restored; going on at step {state.step} of {task.epochs.total}")
        if state.step > task.epochs.total:
            print(f"{reader.prefix}: trained to the end; raise --epoch to go on, or start afresh with --load")
    else:
        print(f"{reader.prefix}: {restored} restored; starting at step 1")
    return state


def _require_same_epochs(options, before, now):
    """Raises UserError if the steps that were done were of another size, or of an epoch of another length.

    Args:
        before: {"batch_size", "examples"} of the checkpoint; empty in those that were written before these were.
        now: learning_rate.Epochs.
    """
    mend = "give the same, or another --time_stamp, where --resume_model PREFIX starts from this one"
    batch, examples = before.get("batch_size", now.batch_size), before.get("examples", now.examples)
    if batch != now.batch_size:
        size, times = now.batch_size // options.accumulate, options.accumulate
        raise UserError(
            f"{options.folder}: trained with {batch} example(s) a step, but --batch_size {size}"
            f" --accumulate {times} make it {now.batch_size}; {mend}"
        )
    if examples != now.examples:
        raise UserError(
            f"{options.folder}: trained with {examples} example(s) an epoch, but {now.source or 'the training set'} has"
            f" {now.examples} now; {mend}"
        )


def _require_same_model(options, config, model):
    """Raises UserError if a network of the same weights was trained, but one that computes otherwise."""
    now = json.loads(json.dumps(model.settings))
    for name, value in config.get("model", {}).items():
        if name not in MAY_CHANGE and now.get(name, value) != value:
            raise UserError(
                f"{options.folder}: its network was trained with {name} {value}, but the flags say {now[name]};"
                " give the same, or another --time_stamp"
            )


def _require_same_step(options, state):
    """Raises UserError unless all workers found the same checkpoint."""
    if not devices.several_workers(options.strategy):
        return
    per_replica = options.strategy.run(lambda: tf.constant(state.step, tf.float32))
    mean = float(options.strategy.reduce(tf.distribute.ReduceOp.MEAN, per_replica, axis=None))
    if mean != state.step:
        raise UserError(
            f"{options.folder}: this worker goes on at step {state.step}, others do not;"
            " all workers must see the same folder: put exp on a disk that they share"
        )


def _prefix(options, step):
    return os.path.join(options.folder, f"{options.exp_name}_model.ckpt_step_{step}")
