"""Training on several devices and in several processes, in reduced precision, and its guards."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time

import keras
import numpy as np
import pytest
import speech
import tensorflow as tf
from keras import ops

from feat.base.files import UserError
from feat.batches import common
from feat.corpora import cache
from nn.training import devices
from nn.training.optimizers import make_optimizer
from nn.training.step import TrainStep
from nn.training.task import Epochs

EXP = "exp/deep_casa_wsj"
SEQ = speech.SEQ | dict(batch_size=2, segment_seconds=0.4)
LAST = 6  # the step that would come after 3 epochs of 4 mixtures in batches of 2
BATCH, STEPS = 8, 20


# One step after the other, two devices against one -------------------------------------------------


@pytest.fixture(scope="module")
def two():
    """One strategy for all: TensorFlow numbers the sums over replicas anew for each, and mixes them up."""
    return tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])


def regression_model():
    """A small network with every kind of layer but drop-out."""
    keras.utils.set_random_seed(1)
    x = keras.Input((12, 3))
    y = keras.layers.Conv1D(6, 3, activation="elu")(x)
    y = keras.layers.LayerNormalization()(y)
    return keras.Model(x, keras.layers.Dense(2)(y))


def batches(share=common.Share()):
    """All batches of the regression, or this share's pieces of them."""
    random = np.random.default_rng(0)
    x = random.standard_normal((2 * STEPS, BATCH, 12, 3)).astype(np.float32)
    y = np.tanh(x[:, :, 1:-1, :2] + x[:, :, 2:, 1:]) + 0.1
    arrays = tuple(share.examples(array) for array in (x, y))
    return tf.data.Dataset.from_tensor_slices(arrays).batch(share.piece_size(BATCH))


def train(strategy, optimizer_name, dtype="float32", **options):
    """(losses of 20 steps, {name: weights, moments and averages}) after them."""
    from nn.training import devices

    keras.utils.clear_session()  # names begin anew
    policy = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy(dtype)
    with strategy.scope():
        model = regression_model()
        optimizer = make_optimizer(optimizer_name, 1e-3)
        optimizer.build(model.trainable_variables)
    keras.mixed_precision.set_dtype_policy(policy)

    def objective(batch, training):
        error = ops.mean(ops.square(ops.cast(model(batch[0], training=training), "float32") - batch[1]), axis=(1, 2))
        return error, {"error": error}

    pieces = options.get("accumulate", 1)
    step = TrainStep(model, optimizer, objective, strategy, BATCH * pieces, **options)
    distributed = devices.distribute(strategy, batches)
    step.compile(distributed.element_spec)
    stream = iter(distributed)
    found = [step([next(stream) for _ in range(pieces)], 3e-3) for _ in range(STEPS)]
    state = {v.path: v.numpy() for v in [*model.variables, *optimizer.variables]}
    state |= {f"average of {name}": v.numpy() for name, v in step.state.items()}
    return [float(values["loss"]) for values in found], state


def assert_close(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        scale = np.abs(theirs[name]).max() + 1e-12
        assert np.abs(array - theirs[name]).max() <= tolerance * scale, name


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (optimizer, options)
        for optimizer in ("adam", "adamw", "momentum")
        for options in (
            {},
            dict(clip_norm=0.05),
            dict(ema_decay=0.9),
            dict(accumulate=2),
            dict(clip_norm=0.05, accumulate=2, ema_decay=0.9),
        )
    ]
    # Of a batch of 8 a few examples count, on one replica more than on the other.
    + [("adam", dict(least_loss=0.3)), ("adam", dict(least_loss=0.3, accumulate=2, clip_norm=0.05))],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "plain",
)
def test_two_replicas_train_as_one_device(two, optimizer, options):
    losses, ours = train(two, optimizer, **options)
    alone, theirs = train(tf.distribute.OneDeviceStrategy("/cpu:0"), optimizer, **options)
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
    assert_close(ours, theirs, 1e-5)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_steps_without_an_example_that_counts_change_nothing():
    one = tf.distribute.OneDeviceStrategy("/cpu:0")
    for limits in (dict(least_loss=1e3), dict(largest_loss=0.0)):
        losses, state = train(one, "adam", **limits)
        assert np.isnan(losses).all()
        assert all(not np.any(value) for name, value in state.items() if "momentum" in name or "iteration" in name)


def test_accumulated_pieces_are_one_large_batch():
    """Momentum is linear in the gradient, so that its first step on two batches is the mean of both."""
    one = tf.distribute.OneDeviceStrategy("/cpu:0")
    _, both = train(one, "momentum", accumulate=2)
    assert STEPS * 2 * BATCH == sum(len(x) for x, _ in batches())
    _, single = train(one, "momentum")
    assert any(np.abs(both[name] - single[name]).max() > 1e-4 for name in both)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_reduced_precision_learns(dtype):
    one = tf.distribute.OneDeviceStrategy("/cpu:0")
    losses, state = train(one, "adam", dtype, scale_loss=dtype == "mixed_float16")
    exact, _ = train(one, "adam")
    assert np.isfinite(losses).all() and losses[-1] < 0.9 * losses[0]
    np.testing.assert_allclose(losses, exact, rtol=0.03)
    assert all(value.dtype != np.float16 for value in state.values())


def test_a_step_that_is_not_finite_changes_nothing():
    model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization(), keras.layers.Dense(1)])
    optimizer = make_optimizer("adam", 1e-3)
    optimizer.build(model.trainable_variables)

    def objective(batch, training):
        return ops.mean(model(batch, training=training), axis=-1), {}

    step = TrainStep(model, optimizer, objective, tf.distribute.get_strategy(), 4, ema_decay=0.5)
    good = tf.random.stateless_normal((4, 2), (1, 2))
    step.compile(tf.TensorSpec([4, 2]))
    assert float(step([good], 1e-2)["bad"]) == 0
    state = [*model.variables, *[v for v in optimizer.variables if v.path != "adam/iteration"], *step.averages]
    before = [np.array(v) for v in state]
    for broken in (np.nan, np.inf):
        assert float(step([tf.concat([good[:3], [[broken, 0.0]]], axis=0)], 1e-2)["bad"]) == 1
    for variable, value in zip(state, before):
        np.testing.assert_array_equal(np.array(variable), value)
    assert float(step([good], 1e-2)["bad"]) == 0
    assert any((np.array(v) != value).any() for v, value in zip(state, before))


def test_the_scale_of_the_loss_falls_until_gradients_are_finite():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    optimizer = make_optimizer("momentum", 1.0)
    optimizer.build(model.trainable_variables)

    def objective(batch, training):  # overflows in float16 from a scale of 2048
        return ops.mean(ops.cast(ops.cast(model(batch), "float16") * 30.0, "float32"), axis=-1), {}

    step = TrainStep(model, optimizer, objective, tf.distribute.get_strategy(), 1, scale_loss=True)
    step.compile(tf.TensorSpec([1, 1]))
    found = [step([tf.ones((1, 1))], 0.0) for _ in range(8)]
    scales = [float(values["loss_scale"]) for values in found]
    assert scales[0] == 2**15 and 2**9 <= scales[-1] <= 2**11 and scales[-1] == scales[-2]
    assert not any(float(values["bad"]) for values in found)


# Scripts -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus, its features and the estimates of an untrained first stage."""
    folder = tmp_path_factory.mktemp("devices")
    speech.make_corpus(folder, dict(tr=4, cv=3, tt=1))
    speech.succeed(folder, "feat/feat_gen.py", num_workers=1, **speech.STFT)
    speech.succeed(folder, "nn/simul_group.py", time_stamp="simul", **speech.SIMUL | dict(epoch=1))
    speech.succeed(folder, "nn/simul_group.py", is_deploy=2, time_stamp="simul", **speech.SIMUL)
    return folder


def seq(folder, stamp, *flags, **named):
    return speech.succeed(folder, "nn/seq_group.py", *flags, time_stamp=stamp, **SEQ | dict(epoch=3) | named)


def prefix(folder, stamp, step=LAST):
    return folder / EXP / "models" / stamp / f"deep_casa_wsj_model.ckpt_step_{step}"


def exists(path):
    return path.with_name(path.name + ".index").exists()


def assert_finite(prefix):
    arrays = [
        x for x in speech.checkpoint_arrays(prefix).values() if isinstance(x, np.ndarray) and x.dtype == np.float32
    ]
    assert arrays and all(np.isfinite(array).all() for array in arrays)


def assert_same_training(folder, one, other, tolerance=1e-5):
    """Weights and moments of two runs agree, and so does their state but for rounding."""
    ours, theirs = (speech.checkpoint_arrays(prefix(folder, stamp)) for stamp in (one, other))
    states = [
        json.loads(arrays.pop(next(n for n in arrays if n.startswith("loop"))))["state"] for arrays in (ours, theirs)
    ]
    for score in ("score", "best_score", "marked_score"):
        assert states[0].pop(score) == pytest.approx(states[1].pop(score), rel=1e-4)
    assert states[0] == states[1]
    assert_close(ours, theirs, tolerance)


def test_the_script_on_two_virtual_devices(folder):
    options = dict(optimizer="momentum", clip_norm=1.0)
    printed = seq(folder, "two", num_virtual_devices=2, runner=speech.run, **options)
    assert "global batch 2, on 2 devices" in printed
    seq(folder, "one", **options)
    assert_same_training(folder, "two", "one")


def test_a_batch_that_devices_cannot_share(folder):
    line = speech.refuse(folder, "nn/seq_group.py", time_stamp="odd", num_virtual_devices=2, **SEQ | dict(batch_size=3))
    assert "--batch_size 3 cannot be shared evenly by 2 devices; take a multiple of 2" in line


def test_a_list_shorter_than_a_step_is_named():
    with pytest.raises(UserError, match=r"^lists/tr: 6 training example\(s\) are fewer than the 7 of a step; lower"):
        Epochs(6, 7, 1, source="lists/tr")


def test_the_first_stage_in_bfloat16_with_a_moving_average(folder):
    run = speech.SIMUL | dict(time_stamp="bf16", epoch=2, batch_size=2, precision="bfloat16", ema_decay=0.9)
    speech.succeed(folder, "nn/simul_group.py", **run)
    line = speech.refuse(folder, "nn/simul_group.py", **run | dict(ema_decay=0.0, epoch=3))
    assert "another --ema_decay" in line
    assert_finite(prefix(folder, "bf16", 4))
    # Inference takes the average.
    speech.succeed(folder, "nn/simul_group.py", is_deploy=1, time_stamp="bf16", **speech.SIMUL)


def test_dry_run_says_what_training_costs_and_writes_nothing(folder):
    printed = seq(folder, "dry", "--dry_run")
    for said in ("parameters", "MACs", "peak memory", "checkpoints", "2 an epoch, 5 in all", "whole run"):
        assert said in printed
    assert not (folder / EXP / "models/dry").exists()


def test_profile_and_hparams_are_written(folder):
    seq(folder, "profile", profile_steps="2,3", epoch=3)
    names = [str(path) for path in (folder / EXP / "models/profile/tensorboard").rglob("*")]
    assert any(name.endswith(".xplane.pb") for name in names)
    events = [event for name in names if "tfevents" in name for event in tf.compat.v1.train.summary_iterator(name)]
    tags = {value.tag for event in events for value in event.summary.value}
    assert "_hparams_/session_start_info" in tags
    assert {"train/audio_seconds_per_second", "train/steps_per_second", "train/learning_rate"} <= tags
    assert any(tag.startswith("weights/") and tag.endswith("/kernel") for tag in tags)


@contextlib.contextmanager
def broken_estimates(folder, set_name):
    """Gives the name of a mixture of a set whose estimates hold NaN meanwhile."""
    with open(folder / f"lists/mix_2_spk_min_{set_name}_mix", encoding="utf-8") as file:
        name = file.read().split()[1]
    path = cache.estimate_path(str(folder / EXP / "feat"), set_name, name)
    whole = np.load(path)
    np.save(path, np.where(np.arange(whole.shape[1])[:, None] == 5, np.nan, whole))
    try:
        yield name
    finally:
        np.save(path, whole)


def test_an_utterance_that_is_not_finite(folder):
    """Its steps are skipped; where there is nothing else training stops and names it."""
    with broken_estimates(folder, "tr") as name:
        printed = seq(folder, "skipped", epoch=2, batch_size=1, segment_seconds=0)
        among_others = seq(folder, "among_others", epoch=3, segment_seconds=0)
        line = speech.refuse(
            folder,
            "nn/seq_group.py",
            time_stamp="stopped",
            **SEQ | dict(batch_size=4, segment_seconds=0, max_bad_steps=1, epoch=4),
        )
    assert_finite(prefix(folder, "skipped", 8))
    assert "not finite in 1 steps in a row" in line and name in line
    # Once, although each epoch leaves it out, and without those that it shares a batch with.
    for said in (printed, among_others):
        (line,) = [line for line in said.splitlines() if "was left out" in line]
        assert line.endswith(f" was left out: {name}: numbers in it are not finite")


@pytest.mark.parametrize("devices", [0, 2])
def test_a_validation_mixture_that_is_not_finite(folder, devices):
    with broken_estimates(folder, "cv") as name:
        runner = speech.run if devices else speech.run_here
        flags = SEQ | dict(time_stamp=f"validation_{devices}", num_virtual_devices=devices)
        line = speech.refuse(folder, "nn/seq_group.py", runner=runner, **flags)
    assert f"validation loss is nan before step 1: numbers in {name} are not finite; mend or make its files" in line


def test_a_validation_that_is_not_finite_although_its_mixtures_are(folder):
    """All of them, for what was learnt: none is named."""
    flags = SEQ | dict(time_stamp="diverged", learning_rate=1e30, epoch=9, segment_seconds=0)
    line = speech.refuse(folder, "nn/seq_group.py", **flags)
    assert re.search(r"validation loss is (nan|inf) before step \d+; lower --learning_rate", line)


# Several processes ---------------------------------------------------------------------------------


def start_workers(folder, stamp, **named):
    """Two processes that train together, as TF_CONFIG says."""
    sockets = [socket.socket() for _ in range(2)]
    for some in sockets:
        some.bind(("localhost", 0))
    cluster = {"worker": [f"localhost:{some.getsockname()[1]}" for some in sockets]}
    for some in sockets:
        some.close()
    flags = SEQ | dict(epoch=3, time_stamp=stamp, optimizer="momentum", clip_norm=1.0) | named
    workers = []
    for index in range(2):
        config = {"cluster": cluster, "task": {"type": "worker", "index": index}, "environment": "cloud"}
        workers.append(
            subprocess.Popen(
                speech.command("nn/seq_group.py", **flags),
                cwd=folder,
                env=os.environ | {"TF_CONFIG": json.dumps(config), "TF_CPP_MIN_LOG_LEVEL": "3"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return workers


def finish(workers, timeout=240):
    """[(exit code, stdout, stderr)]"""
    try:
        return [(*worker.communicate(timeout=timeout), worker.returncode)[::-1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()


def test_two_workers_train_as_one_process(folder):
    ended = finish(start_workers(folder, "workers"))
    assert [code for code, *_ in ended] == [0, 0], ended
    seq(folder, "alone", optimizer="momentum", clip_norm=1.0)
    assert_same_training(folder, "workers", "alone")


def test_a_worker_that_dies(folder):
    """The other one stops with a line; both go on from the last checkpoint."""
    long = dict(epoch=2000, save_steps=5)
    workers = start_workers(folder, "died", **long)
    deadline = time.monotonic() + 200
    while not exists(prefix(folder, "died", 11)) and time.monotonic() < deadline:
        time.sleep(0.02)
    workers[1].send_signal(signal.SIGKILL)
    code, err, _ = finish(workers)[0]
    assert code == 1 and "Traceback" not in err, err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "another worker stopped" in line and "start the same command on all workers" in line
    last = max(int(p.name.split("_step_")[1].split(".")[0]) for p in prefix(folder, "died").parent.glob("*.index"))
    epochs = (last + 9) // 2
    ended = finish(start_workers(folder, "died", **long | dict(epoch=epochs)))
    assert [code for code, *_ in ended] == [0, 0], ended
    assert f"going on at step {last} of" in ended[0][2]


def test_the_end_of_an_epoch_is_not_waited_for():
    """A thread of tf.data that tunes itself sleeps longer and longer; now and then its iterator waits till it wakes."""

    def make(share):
        return common.pieces(
            (np.arange(12).reshape(6, 2),), lambda i: {"index": tf.cast(i, tf.float32) * tf.ones(3)}, share
        )

    batches = devices.distribute(tf.distribute.OneDeviceStrategy("/cpu:0"), make)
    assert [batch["index"].shape for batch in batches] == [(2, 3)] * 6
    assert batches.options().autotune.enabled is False
