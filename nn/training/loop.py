"""The one training loop: validation, learning rate, checkpoints, logs, guards, resume.

A system's script builds a Task; `train` does the rest. The same command gives the same weights on the same
machine, and goes on where it was after being killed.
"""

import collections
import contextlib
import dataclasses
import math
import os
import signal
import sys
import time
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from tensorboard.plugins.hparams import api as hparams

from feat.base.files import UserError, brief, make_writable_directory, write_text
from feat.base.graph import compiled
from feat.base.parallel import progress
from feat.batches import common
from nn.checkpoints import ours as checkpoint
from nn.training import cost, devices
from nn.training.flags import project_flags
from nn.training.resume import _prefix, _require_same_step, _resume
from nn.training.step import TrainStep
from nn.training.task import LoopState


def train(task, options):
    """Trains to the end; gives the LoopState. Goes on from the newest whole checkpoint of the folder, if any."""
    chief = devices.is_chief(options.strategy)
    if chief and not options.dry_run:
        make_writable_directory(options.folder)
        checkpoint.remove_leftovers(options.folder)
    state = LoopState(rate=task.rule.initial, best_score=task.worst_score)
    with options.strategy.scope():
        task.optimizer.build(task.model.trainable_variables)
    step = TrainStep(
        task.model,
        task.optimizer,
        task.objective,
        options.strategy,
        task.epochs.batch_size,
        clip_norm=options.clip_norm,
        clip_percentile=options.clip_percentile,
        clip_pieces=options.clip_pieces,
        accumulate=options.accumulate,
        ema_decay=options.ema_decay,
        scale_loss=options.scale_loss,
        jit_compile=options.jit_compile,
        audio_seconds=lambda batch: task.seconds_per_frame * tf.reduce_sum(tf.cast(batch[task.length_key], tf.float32)),
        least_loss=task.least_loss,
        largest_loss=task.largest_loss,
    )
    state, begun_here = _resume(task, options, step, state)
    _require_same_step(options, state)
    print(_batch_line(task, options))
    if options.dry_run:
        cost.print_forecast(task, options, step)
        return state
    if chief:
        started_from = options.resume_model or options.load
        if begun_here:
            started_from = (checkpoint.read_config(_prefix(options, state.step)) or {}).get("started_from", "")
        more = task.config | task.notes | {"started_from": started_from}
        checkpoint.write_config(options.folder, task.system, task.model, **more)
        write_text(
            os.path.join(options.folder, "flags.txt"),
            "\n".join(filter(None, (flag.serialize() for flag in project_flags()))) + "\n",
        )
    if state.step > task.epochs.total and state.validated_step == state.step:
        print(f"{options.folder}: trained to the end, {task.epochs.total} steps; raise --epoch to go on")
        return state
    if begun_here and state.step > 1:
        print(f"{options.folder}: going on at step {state.step} of {task.epochs.total}")
    with Run(task, options, step, state, chief) as run:
        run_epochs(
            task.epochs,
            task.rule,
            state,
            train_step=run.train_step,
            validate=run.validate,
            save=run.save,
            higher_is_better=task.higher_is_better,
            save_steps=options.save_steps,
            finish=options.finish,
            every=task.validate_epochs,
            after_step=run.stop_if_asked,
        )
        run.look_at_last_step()
    early = "" if state.step > task.epochs.total else ", where it stopped improving"
    print(
        f"{options.folder}: {state.step - 1} steps{early}, best validation {task.score} {state.marked_score:.3f}"
        f" at step {state.marked_step}"
    )
    return state


def _batch_line(task, options):
    """What a step is made of."""
    replicas = options.strategy.num_replicas_in_sync
    size = task.epochs.batch_size
    parts = [f"global batch {size}"]
    if replicas > 1:
        parts.append(f"on {replicas} devices")
    if options.accumulate > 1:
        parts.append(f"in {options.accumulate} parts of {size // options.accumulate}")
    return f"{options.folder}: {', '.join(parts)}; {task.epochs.steps} steps an epoch, {task.epochs.total} in all"


class _Step(NamedTuple):
    """A training step that was started."""

    number: int
    epoch: int
    batches: list
    bad: Any


class Run:
    """The parts of a training run that `learning_rate.run_epochs` puts in order."""

    def __init__(self, task, options, step, state, chief):
        self.task = task
        self.options = options
        self.strategy = options.strategy
        self.step = step
        self.state = state
        self.chief = chief
        self.validation_function = None
        self.batches = None
        self.epoch = None
        self.started_at = state.step
        self.pending = collections.defaultdict(list)
        self.last_step = None
        self.bad_steps = []  # in a row
        self.named = set()  # mixtures whose steps were left out
        self.signal = None
        self.handlers = {}
        self.profiling = False
        tensorboard = os.path.join(options.folder, "tensorboard")
        self.writer = tf.summary.create_file_writer(tensorboard) if chief else tf.summary.create_noop_writer()
        self.bar = progress(None, "train", task.epochs.total, initial=state.step - 1, unit="step", disable=not chief)
        self.logged_at = time.monotonic()

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            self.handlers[number] = signal.signal(number, self._ask_to_stop)
        if self.chief:
            with self._writing():
                hparams.hparams({flag.name: _plain(flag.value) for flag in project_flags()})
        return self

    def __exit__(self, kind, error, trace):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.profiling:
            tf.profiler.experimental.stop()
        self.bar.close()
        with contextlib.suppress(tf.errors.OpError):
            self.writer.close()
        if isinstance(error, tf.errors.OpError) and devices.several_workers(self.strategy):
            raise UserError(
                f"{self.options.folder}: another worker stopped ({brief(error)});"
                " start the same command on all workers, they go on from the last checkpoint"
            ) from error

    def _ask_to_stop(self, number, frame):
        if self.signal is not None:  # asked twice: at once
            raise KeyboardInterrupt(number)
        self.signal = number

    def stop_if_asked(self, state):
        """After SIGTERM or SIGINT: saves and leaves."""
        if self.signal is None:
            return
        self.save(state, False)
        self.bar.write(f"{self.options.folder}: saved after {state.step - 1} steps", file=sys.stdout)
        raise KeyboardInterrupt(self.signal)

    def train_step(self, step, rate):
        """One optimiser step on the next batches."""
        epoch, place = divmod(step - 1, self.task.epochs.steps)
        if self.epoch != epoch:
            self._open(epoch, place)
        batches = [next(self.batches) for _ in range(self.options.accumulate)]
        self._profile(step)
        if hasattr(self.task.rule, "beta_1") and hasattr(self.task.optimizer, "current_beta_1"):
            self.task.optimizer.current_beta_1.assign(self.task.rule.beta_1(self.state))
        try:
            found = self.step(batches, rate)
        except (tf.errors.ResourceExhaustedError, tf.errors.AbortedError) as error:
            # oneDNN, on CPU, says no more than that it could not create a primitive.
            if isinstance(error, tf.errors.AbortedError) and "could not create a primitive" not in error.message:
                raise
            raise self._out_of_memory(step, epoch, batches, error) from error
        for name, value in found.items():
            self.pending[name].append(value)
        # Looks at the step before, so that no device has to wait.
        self.look_at_last_step()
        self.last_step = _Step(step, epoch, batches, found["bad"])
        self.bar.update()
        if step % self.options.log_steps == 0 or step == self.task.epochs.total:
            self._log(step, rate)

    def _open(self, epoch, place):
        distributed = devices.distribute(
            self.strategy,
            lambda share: self.task.training_batches(epoch, place * self.options.accumulate, share),
        )
        if self.epoch is None:
            self.step.compile(distributed.element_spec)
        self.batches, self.epoch = common.checked(distributed, self.task.check_inputs), epoch

    def look_at_last_step(self):
        """Names the mixtures of the last step, if it was left out; ends training after too many in a row."""
        done, self.last_step = self.last_step, None
        if done is None:
            return
        if not float(done.bad):
            self.bad_steps.clear()
            return
        self.bad_steps.append(done)
        self._name_mixtures(done)
        if len(self.bad_steps) >= self.options.max_bad_steps:
            names = [name for some in self.bad_steps for name in self._names(some.epoch, some.batches)]
            raise UserError(
                f"{self.options.folder}: loss or gradient was not finite in {len(self.bad_steps)} steps in a row, the"
                f" last of them {done.number}, on {', '.join(dict.fromkeys(names))};"
                " look at these files with feat/doctor.py, lower --learning_rate or set --clip_norm"
            )

    def _name_mixtures(self, step):
        """Says which mixtures a step was left out for, once each."""
        names = np.array(self._names(step.epoch, step.batches))
        broken = np.concatenate(
            [
                _not_finite({key: self.strategy.experimental_local_results(value)[i] for key, value in batch.items()})
                for batch in step.batches
                for i in range(len(self.strategy.experimental_local_results(batch["index"])))
            ]
        )
        why = "its loss or gradient was not finite"
        if broken.any():
            names, why = names[broken], "numbers in it are not finite"
        new = [name for name in dict.fromkeys(names.tolist()) if name not in self.named]
        self.named.update(new)
        if new:
            self.bar.write(f"step {step.number} was left out: {', '.join(new)}: {why}", file=sys.stdout)
            sys.stdout.flush()

    def _values(self, batches, key):
        """[examples] of this process, of all replicas and batches."""
        return np.concatenate(
            [x.numpy() for batch in batches for x in self.strategy.experimental_local_results(batch[key])]
        )

    def _names(self, epoch, batches):
        return self.task.names_of(epoch, self._values(batches, "index"))

    def _out_of_memory(self, step, epoch, batches, error):
        frames = self._values(batches, self.task.length_key)
        name = self._names(epoch, batches)[int(np.argmax(frames))]
        return UserError(
            f"{self.options.folder}: out of memory in step {step}, whose longest mixture is {name} with"
            f" {frames.max() * self.task.seconds_per_frame:.1f} s ({brief(error)});"
            " lower --batch_size and raise --accumulate by as much, or set --segment_seconds, and run it again"
        )

    def _profile(self, step):
        if not self.options.profile_steps or not self.chief:
            return
        first, last = self.options.profile_steps
        if step == first:
            tf.profiler.experimental.start(os.path.join(self.options.folder, "tensorboard"))
            self.profiling = True
        elif self.profiling and step > last:
            tf.profiler.experimental.stop()
            self.profiling = False

    @contextlib.contextmanager
    def _writing(self):
        """Summaries go to the writer; a disk that refuses them is named."""
        try:
            with self.writer.as_default():
                yield
            self.writer.flush()
        except tf.errors.OpError as error:
            raise UserError(
                f"{self.options.folder}/tensorboard: cannot be written ({brief(error)});"
                " make room, then run the same command again"
            ) from error

    def validate(self, step):
        """Mean of the metrics over the validation set; gives the score."""
        self.look_at_last_step()
        if self.pending:
            self._log(step - 1, None)
        batches = devices.distribute(self.strategy, self.task.validation_batches)
        if self.validation_function is None:
            self.validation_function = make_validation_step(self.task.objective, self.strategy, batches.element_spec)
        totals = collections.defaultdict(float)
        with self.step.averaged_weights():
            for batch in common.checked(batches, self.task.check_inputs):
                if self.signal is not None:
                    break
                for name, value in self.validation_function(batch).items():
                    totals[name] += float(value)
            if self.signal is None:
                count = totals.pop("count")
                means = {name: total / count for name, total in totals.items()} | self.task.evaluate()
                self._show(means, step - 1)
        self.stop_if_asked(self.state)
        shown = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
        self.bar.write(f"after {step - 1} of {self.task.epochs.total} steps: validation {shown}", file=sys.stdout)
        sys.stdout.flush()
        self.logged_at = time.monotonic()
        if not math.isfinite(means[self.task.score]):
            raise UserError(
                f"{self.options.folder}: validation {self.task.score} is {means[self.task.score]} before step {step}"
                + self._why_not_finite()
            )
        return means[self.task.score]

    def _why_not_finite(self):
        """Goes through validation once more, a mixture at a time; names those whose loss or score is not finite."""
        batches = self.task.validation_batches()
        # Each process for itself, on one device.
        function = make_validation_step(self.task.objective, tf.distribute.get_strategy(), batches.element_spec)
        found, broken, count = [], [], 0
        with self.step.averaged_weights():
            for batch in common.checked(batches, self.task.check_inputs):
                sums = function(batch)
                count += 1
                if not all(math.isfinite(float(sums[name])) for name in {"loss", self.task.score} & set(sums)):
                    found += self.task.names_of(None, batch["index"].numpy())
                    broken += _not_finite(batch).tolist()
        learning = "lower --learning_rate or set --clip_norm, and start under another --time_stamp"
        if any(broken):
            names = [name for name, bad in zip(found, broken) if bad]
            return f": numbers in {_some(names)} are not finite; mend or make its files again, and run it again"
        # Where it is all of them, it is not for what is in them.
        return f"{', in ' + _some(found) if 0 < len(found) < count else ''}; {learning}"

    def _show(self, means, step):
        """Scalars and pictures of a validation."""
        if not self.chief:
            return
        with self._writing():
            for name, value in means.items():
                tf.summary.scalar(f"validation/{name}", value, step)
            for weight in self.task.model.trainable_variables if self.options.weight_histograms else ():
                histogram = histogram_pb(f"weights/{weight.path}", keras.ops.convert_to_numpy(weight))
                tf.summary.experimental.write_raw_pb(histogram.SerializeToString(), step)
            self.task.pictures(os.path.join(self.options.folder, "pictures"), step)

    def save(self, state, is_best):
        """Writes the checkpoint of a state."""
        if not self.chief:
            return
        prefix = _prefix(self.options, state.step)
        epochs = self.task.epochs
        loop = {
            "state": dataclasses.asdict(state),
            "epoch": {"batch_size": epochs.batch_size, "examples": epochs.examples},
        }
        checkpoint.save(prefix, self.task.model, self.task.optimizer, loop, self.step.state)
        if is_best:
            checkpoint.mark_best(prefix)
        if self.options.keep_checkpoints:
            for step, old in checkpoint.numbered(self.options.folder)[: -self.options.keep_checkpoints]:
                if step != state.marked_step:
                    checkpoint.remove(old)

    def _log(self, step, rate):
        """Means since the last time, to TensorBoard and the progress bar."""
        values = {name: np.array([float(v) for v in some]) for name, some in self.pending.items()}
        self.pending.clear()
        seconds = max(time.monotonic() - self.logged_at, 1e-9)
        self.logged_at = time.monotonic()
        skipped = int(values.pop("bad").sum())
        audio_seconds = values.pop("audio_seconds")
        if "left_out" in values:
            left_out = values.pop("left_out") > 0
            skipped += int(left_out.sum())
            for name in ("loss", "gradient_norm"):  # such steps have none
                values[name] = values[name][~left_out]
        means = {name: float(np.mean(some)) for name, some in values.items() if len(some)}
        numbers = {f"train/{name}": value for name, value in means.items()} | {
            "train/skipped_steps": skipped,
            "train/steps_per_second": len(audio_seconds) / seconds,
            "train/audio_seconds_per_second": float(np.sum(audio_seconds)) / seconds,
        }
        shown = {name: f"{value:.2f}" for name, value in means.items()}
        if rate is not None:
            numbers["train/learning_rate"] = rate
            shown["rate"] = f"{rate:.1e}"
        if skipped:
            shown["skipped"] = skipped
        with self._writing():
            for name, value in numbers.items():
                tf.summary.scalar(name, value, step)
        self.bar.set_postfix(shown, refresh=False)


def _not_finite(batch):
    """Which examples of a batch hold numbers that are not finite, bool [batch]."""
    return np.any(
        [
            [not np.isfinite(example).all() for example in value.numpy()]
            for value in batch.values()
            if value.dtype.is_floating
        ],
        axis=0,
    )


def _some(names, most=3):
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def make_validation_step(objective, strategy, element_spec):
    """Compiled (batch of single examples) -> {"count", "loss", metrics}, sums over replicas of those that count."""

    def replica(batch):
        loss, metrics = objective(batch, training=False)
        counts = tf.cast(batch["index"] >= 0, tf.float32)
        means = {"loss": loss} | metrics
        sums = {name: tf.reduce_sum(tf.where(counts > 0, value, 0.0)) for name, value in means.items()}
        return {"count": tf.reduce_sum(counts)} | sums

    def validation_step(batch):
        sums = strategy.run(replica, (batch,))
        return {k: strategy.reduce(tf.distribute.ReduceOp.SUM, v, axis=None) for k, v in sums.items()}

    return compiled(validation_step, element_spec)


def _plain(value):
    """A flag's value as HParams takes it."""
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def run_epochs(
    epochs,
    rule,
    state,
    *,
    train_step,
    validate,
    save,
    higher_is_better,
    save_steps=0,
    finish=True,
    every=1,
    after_step=lambda state: None,
):
    """The order of events of a training run.

    Before each epoch's first step: validation in every `every`th, checkpoint, then the rule. A run that goes on from a
    checkpoint does not validate again what the checkpoint was written after.

    Args:
        epochs: Epochs.
        rule: one of the rules above; training ends early where its start_epoch says so.
        state: LoopState, changed in place.
        train_step: called with (step, rate).
        validate: called with the step; gives the score.
        save: called with the state, and whether it is the best so far.
        save_steps: also save every so many steps; 0: at epochs only.
        every: epochs between validations.
        finish: validate and save after the last step too, which the original does not.
        after_step: called with the state, in which the step is done.
    """

    def reaches(score, best):
        return math.isnan(best) or (score >= best if higher_is_better else score <= best)

    def judge():
        score = float(validate(state.step))
        if reaches(score, state.best_score):
            state.best_score, state.best_step = score, state.step
        if reaches(score, state.marked_score):
            state.marked_score, state.marked_step = score, state.step
        state.validated_step, state.score = state.step, score
        save(state, state.marked_step == state.step)

    while state.step <= epochs.total:
        if epochs.starts(state.step):
            if (state.step - 1) // epochs.steps % every:
                save(state, False)
            elif state.validated_step != state.step:
                judge()
            if rule.start_epoch(state):
                break
        train_step(state.step, rule.rate(state))
        state.step += 1
        if save_steps and (state.step - 1) % save_steps == 0 and not epochs.starts(state.step):
            save(state, False)
        after_step(state)
    if finish and state.validated_step != state.step:
        judge()
