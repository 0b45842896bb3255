"""A run that was killed, wherever, and started again ends in the same bits as one that was not."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time

import numpy as np
import pytest
import speech
import tiny_deep_casa

from feat.base.files import UserError
from nn.checkpoints import deep_casa, readers
from nn.checkpoints import ours as checkpoint
from nn.training import rules
from nn.training.loop import run_epochs
from nn.training.optimizers import make_optimizer
from nn.training.task import Epochs, LoopState

EXP = "exp/deep_casa_wsj"
SIMUL = speech.SIMUL | dict(epoch=3, save_steps=2, batch_size=2)
SEQ = speech.SEQ | dict(epoch=3, save_steps=2, ema_decay=0.9)
LAST_SIMUL, LAST_SEQ = 6, 12  # steps of 3 epochs of 4 mixtures, +1: the step that would come next


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus with its features, and runs of both stages that nobody disturbed."""
    folder = tmp_path_factory.mktemp("resume")
    speech.make_corpus(folder, dict(tr=4, cv=1, tt=1))
    speech.succeed(folder, "feat/feat_gen.py", num_workers=1, **speech.STFT)
    speech.succeed(folder, "nn/simul_group.py", time_stamp="simul", **SIMUL)
    speech.succeed(folder, "nn/simul_group.py", is_deploy=2, time_stamp="simul", **SIMUL)
    speech.succeed(folder, "nn/seq_group.py", time_stamp="seq", **SEQ)
    return folder


def run_folder(folder, stamp):
    return folder / EXP / "models" / stamp


def prefix(folder, stamp, step):
    return run_folder(folder, stamp) / f"deep_casa_wsj_model.ckpt_step_{step}"


def index(folder, stamp, step):
    return prefix(folder, stamp, step).with_name(prefix(folder, stamp, step).name + ".index")


def start_again_at(folder, source, stamp, step):
    """A run folder `stamp` as `source` was when its checkpoint of `step` was the newest."""
    target = run_folder(folder, stamp)
    shutil.copytree(run_folder(folder, source), target)
    for path in target.glob("*ckpt_step_*"):
        if int(path.name.split("_step_")[1].split(".")[0]) > step:
            path.unlink()


def test_stage_1_after_sigkill(folder):
    """Killed at random moments, most of them between or in the middle of things."""
    random = np.random.default_rng()
    delays = random.uniform(0, 1.0, 3)
    for step, delay in zip((1, 3, 5), delays):
        process = subprocess.Popen(
            speech.command("nn/simul_group.py", time_stamp="killed", **SIMUL),
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 300
        while not index(folder, "killed", step).exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.002)
        time.sleep(delay)
        process.kill()
        process.wait()
    printed = speech.succeed(folder, "nn/simul_group.py", time_stamp="killed", **SIMUL)
    assert "going on at step" in printed or "trained to the end" in printed, delays
    speech.assert_same_checkpoints(prefix(folder, "simul", LAST_SIMUL), prefix(folder, "killed", LAST_SIMUL))
    best = [(run_folder(folder, stamp) / "best").read_text() for stamp in ("simul", "killed")]
    assert best[0] == best[1]
    assert not list(run_folder(folder, "killed").glob(".saving_*"))


@pytest.mark.parametrize("step", [3, 5])
def test_stage_2_from_every_kind_of_checkpoint(folder, step):
    start_again_at(folder, "seq", f"seq_{step}", step)
    printed = speech.succeed(folder, "nn/seq_group.py", time_stamp=f"seq_{step}", **SEQ)
    assert f"going on at step {step} of" in printed
    speech.assert_same_checkpoints(prefix(folder, "seq", LAST_SEQ), prefix(folder, f"seq_{step}", LAST_SEQ))


def test_a_half_written_checkpoint_is_passed_over(folder):
    start_again_at(folder, "seq", "half", 9)
    os.truncate(str(prefix(folder, "half", 9)) + ".data-00000-of-00001", 700)
    printed = speech.succeed(folder, "nn/seq_group.py", time_stamp="half", **SEQ)
    assert f"{EXP}/models/half/deep_casa_wsj_model.ckpt_step_9: damaged or half-written" in printed
    assert "going on at step 7 of" in printed
    speech.assert_same_checkpoints(prefix(folder, "seq", LAST_SEQ), prefix(folder, "half", LAST_SEQ))


def test_interrupted_while_saving(folder, monkeypatch):
    replace = os.replace

    def interrupted(source, target):
        if str(target).endswith("step_7.index"):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        done = speech.run_here(folder, "nn/seq_group.py", time_stamp="stopped", **SEQ)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1].startswith("stopped:") and "same command" in done.stderr
    assert "Traceback" not in done.stderr
    speech.succeed(folder, "nn/seq_group.py", time_stamp="stopped", **SEQ)
    speech.assert_same_checkpoints(prefix(folder, "seq", LAST_SEQ), prefix(folder, "stopped", LAST_SEQ))


def test_a_signal_saves_and_says_how_to_go_on(folder):
    """SIGTERM to a process of its own; Ctrl-C is above."""
    number, stamp = signal.SIGTERM, "stopped_by_a_signal"
    process = subprocess.Popen(
        speech.command("nn/seq_group.py", time_stamp=stamp, **speech.SEQ | dict(epoch=10000, keep_checkpoints=2)),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not index(folder, stamp, 5).exists() and time.monotonic() < deadline:
        assert process.poll() is None, "ended before it could be stopped"
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "stopped: " in err.splitlines()[-1] and "same command" in err.splitlines()[-1] and "Traceback" not in err
    saved = re.search(r"saved after (\d+) steps", out)
    assert saved and index(folder, stamp, int(saved[1]) + 1).exists()


def test_the_best_is_marked_again(folder):
    start_again_at(folder, "seq", "unmarked", LAST_SEQ)
    best = run_folder(folder, "unmarked") / "best"
    marked = best.read_text()
    best.unlink()
    assert "trained to the end" in speech.succeed(folder, "nn/seq_group.py", time_stamp="unmarked", **SEQ)
    assert best.read_text() == marked


def test_a_longer_run_goes_on_from_the_end_of_a_shorter(folder):
    start_again_at(folder, "seq", "longer", LAST_SEQ)
    printed = speech.succeed(folder, "nn/seq_group.py", time_stamp="longer", **SEQ | dict(epoch=4))
    assert f"going on at step {LAST_SEQ} of 15" in printed and index(folder, "longer", 16).exists()


def test_what_started_from_another_checkpoint_goes_on(folder):
    start = dict(time_stamp="started", resume_model=run_folder(folder, "seq") / "best")
    assert "starting at step 1" in speech.succeed(folder, "nn/seq_group.py", **start, **SEQ | dict(epoch=1))
    for epochs in (2, 3):
        printed = speech.succeed(folder, "nn/seq_group.py", **start, **SEQ | dict(epoch=epochs))
        assert "going on at step" in printed and "starting at step 1" not in printed


def test_refuses_to_go_on_with_other_flags(folder):
    start_again_at(folder, "seq", "other", 5)

    def line(**flags):
        return speech.refuse(folder, "nn/seq_group.py", time_stamp="other", **SEQ | flags)

    assert "is missing; it was trained with other flags" in line(n_dilation_each_block=3)
    assert "use the flags that it was trained with" in line(n_dilated_units=4)
    assert "is missing; it was trained with other flags" in line(n_tcn_block=3)
    assert "no state of the optimiser" in line(optimizer="momentum")
    first_stage = f"{EXP}/models/simul/best"
    assert "would be passed over" in line(resume_model=first_stage)
    config = run_folder(folder, "other") / "config.json"
    config.write_text(config.read_text().replace("8000", "16000"))
    assert "--sample_rate" in line()


def test_a_full_disk_while_saving_keeps_what_was_saved(folder):
    """Files may hold 8 kB, which the first event file does and a checkpoint does not."""
    line = speech.refuse(folder, "nn/seq_group.py", time_stamp="full", runner=speech.run, largest_file=8192, **SEQ)
    assert "models/full" in line and "make room" in line
    assert not [*run_folder(folder, "full").glob("*ckpt*"), *run_folder(folder, "full").glob(".saving_*")]
    speech.succeed(folder, "nn/seq_group.py", time_stamp="full", **SEQ)
    speech.assert_same_checkpoints(prefix(folder, "seq", LAST_SEQ), prefix(folder, "full", LAST_SEQ))


def test_refuses_steps_of_another_size(folder):
    start_again_at(folder, "seq", "size", 5)

    def line(**flags):
        return speech.refuse(folder, "nn/seq_group.py", time_stamp="size", **SEQ | flags)

    for flags in (dict(batch_size=2), dict(accumulate=2)):
        (name,) = flags
        said = line(**flags)
        assert "trained with 1 example(s) a step, but --batch_size" in said and f"--{name} 2" in said
    names = folder / "lists/mix_2_spk_min_tr_mix"
    whole = names.read_text()
    names.write_text("".join(whole.splitlines(keepends=True)[:3]))
    try:
        assert "trained with 4 example(s) an epoch, but " in line() and " has 3 now; give the same" in line()
    finally:
        names.write_text(whole)
    assert "going on at step 5 of" in speech.succeed(folder, "nn/seq_group.py", time_stamp="size", **SEQ)
    # Elsewhere it goes on, where that is asked for, after as many epochs.
    reader = readers.open_reader(str(prefix(folder, "seq", 5)))
    assert [checkpoint.training_state(reader, steps)["step"] for steps in (4, 2, 8)] == [5, 3, 9]


def test_pieces_of_a_step_may_change(folder):
    """As where the memory was too small."""
    start_again_at(folder, "simul", "pieces", 3)
    flags = SIMUL | dict(time_stamp="pieces", batch_size=1, accumulate=2)
    assert "going on at step 3 of" in speech.succeed(folder, "nn/simul_group.py", **flags)


def test_a_checkpoint_of_before_the_size_was_kept_goes_on(folder, monkeypatch):
    save = checkpoint.save

    def save_less(prefix, model, optimizer, loop, step_state):
        state = {name: value for name, value in loop["state"].items() if not name.startswith("marked_")}
        save(prefix, model, optimizer, {"state": state}, step_state)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save_less)
        speech.succeed(folder, "nn/seq_group.py", time_stamp="old", **SEQ | dict(epoch=2))
    assert "going on at step 8 of" in speech.succeed(folder, "nn/seq_group.py", time_stamp="old", **SEQ)
    state = json.loads(speech.checkpoint_arrays(prefix(folder, "old", LAST_SEQ))[checkpoint.LOOP_STATE])["state"]
    assert (state["marked_step"], state["marked_score"]) == (state["best_step"], state["best_score"])
    assert (run_folder(folder, "old") / "best").read_text().endswith(f"_step_{state['best_step']}\n")


def test_names_that_are_patterns(folder):
    """The library that reads checkpoints takes the name of one for a pattern."""
    here = dict(exp_name="in a/e[x]*.v1", time_stamp="t?[1-2] x\\\\.v1")
    speech.succeed(folder, "feat/feat_gen.py", num_workers=1, exp_name=here["exp_name"], **speech.STFT)
    speech.succeed(folder, "nn/simul_group.py", **here, **SIMUL | dict(epoch=1))
    said = speech.succeed(folder, "nn/simul_group.py", **here, **SIMUL | dict(epoch=2))
    assert "going on at step 2 of 3" in said and "damaged" not in said
    speech.succeed(folder, "nn/simul_group.py", is_deploy=1, **here, **SIMUL)
    run = folder / "exp" / here["exp_name"] / "models" / here["time_stamp"]
    assert (run / "e[x]*.v1_model.ckpt_step_4.index").exists()
    damaged = checkpoint.resolve(str(run / "best"))
    os.truncate(damaged + checkpoint.DATA, 700)
    assert "damaged or half-written" in speech.refuse(folder, "nn/simul_group.py", is_deploy=1, **here, **SIMUL)


@contextlib.contextmanager
def nobody():
    """Without the rights of root, which may read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("suffix", [checkpoint.INDEX, checkpoint.DATA])
def test_a_checkpoint_that_may_not_be_read_is_not_passed_over(folder, suffix):
    with tempfile.TemporaryDirectory() as run:  # pytest's folders are for root alone
        os.chmod(run, 0o755)
        for path in run_folder(folder, "seq").glob("*ckpt_step_[79].*"):
            shutil.copy(path, run)
        path = os.path.join(run, "deep_casa_wsj_model.ckpt_step_9" + suffix)
        os.chmod(path, 0)
        with nobody(), pytest.raises(UserError, match=rf"{re.escape(path)}: cannot be read \(Permission denied\)"):
            checkpoint.latest_whole(run)


def test_the_first_validation_is_marked_best():
    """Also where it is worse than what the original starts with, whose bookkeeping stays as it is."""
    epochs, marked = Epochs(1, 1, 5, whole=True), []
    state = LoopState(rate=1.0, best_score=1000.0)
    scores = iter([5000.0, 6000.0, 4000.0, 900.0, 1000.0, 950.0])
    run_epochs(
        epochs,
        rules.ConstantRule(1.0),
        state,
        train_step=lambda step, rate: None,
        validate=lambda step: next(scores),
        save=lambda state, best: marked.append((best, state.best_step, state.best_score)),
        higher_is_better=False,
    )
    worst, best = (0, 1000.0), (4, 900.0)
    assert marked == [(True, *worst), (False, *worst), (True, *worst), (True, *best), (False, *best), (False, *best)]
    assert (state.marked_step, state.marked_score) == best


@pytest.mark.parametrize("steps", [0, 1, 50, 500, 5000])
@pytest.mark.parametrize(("trained", "given"), [(0.9, 0.9), (0.999, 0.999), (0.999, 0.9), (0.9, 0.999), (0.99, 0.5)])
def test_steps_of_adam_in_a_checkpoint_of_the_original(steps, trained, given):
    """From the power that fits: --beta_2 may be another than that of the checkpoint."""
    model, _ = tiny_deep_casa.nets(2, causal=False)
    optimizer = make_optimizer("adam", 1e-3, beta_2=given)
    optimizer.build(model.trainable_variables)
    powers = {"beta1_power": np.float32(0.9 ** (steps + 1)), "beta2_power": np.float32(trained ** (steps + 1))}
    ours = {weight.path.split("/", 1)[1]: weight for weight in model.trainable_variables}
    stored = dict(powers)
    for name, theirs in deep_casa.reference_names(model).items():
        parts = np.atleast_1d(theirs)
        for part, array in zip(parts, np.split(ours[name].numpy(), len(parts), axis=-1)):
            stored |= {part: array, part + "/Adam": 0 * array, part + "/Adam_1": 0 * array}
    assert deep_casa.restore_slots(stored.get, stored, model, optimizer)
    found = int(optimizer.iterations)
    # So many that no power tells, nor has any effect, are not told apart.
    assert found == steps or (steps == 5000 and found > 800 and not trained == given == 0.999)
