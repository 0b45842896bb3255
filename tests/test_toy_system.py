"""Adding a system is adding a folder: one that only tests know trains, resumes, separates, is measured and exported."""

import json
import os

import numpy as np
import pytest
import soundfile
import speech
import toy_system

from nn import pipeline
from nn.checkpoints import ours
from nn.systems import registry

TRAIN = "tests/toy_system/train.py"
RUN = "exp/toy/models"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds a trained system and a recording."""
    folder = tmp_path_factory.mktemp("toy")
    assert "best validation error" in speech.succeed(folder, TRAIN, time_stamp="whole", corpus_flags=False)
    soundfile.write(folder / "mixture.wav", 0.1 * speech.voice(1, 0, 2.0) + 0.1 * speech.voice(2, 0, 2.0), 8000)
    return folder


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(registry, "SYSTEMS", [*registry.SYSTEMS, toy_system.SYSTEM])


def test_a_run_that_stopped_goes_on_to_the_same_weights(folder):
    speech.succeed(folder, TRAIN, time_stamp="parts", epoch=1, corpus_flags=False)
    assert "going on at step" in speech.succeed(folder, TRAIN, time_stamp="parts", epoch=2, corpus_flags=False)
    whole, parts = (ours.numbered(str(folder / RUN / stamp))[-1] for stamp in ("whole", "parts"))
    assert whole[0] == parts[0] > 4
    speech.assert_same_checkpoints(whole[1], parts[1])


def test_separates_a_recording(folder):
    flags = dict(
        resume_model=f"{RUN}/whole", output_dir="out", subtype="FLOAT", window_seconds=0.8, overlap_seconds=0.2
    )
    speech.succeed(folder, "nn/separate.py", "mixture.wav", corpus_flags=False, **flags)
    mixture, _ = soundfile.read(folder / "mixture.wav", dtype="float32")
    best = speech.checkpoint_arrays(ours.resolve(str(folder / RUN / "whole/best")))
    (weights,) = (array for name, array in best.items() if name.startswith("weights/"))
    for talker in range(2):
        estimate, rate = soundfile.read(folder / f"out/mixture_s{talker + 1}.wav", dtype="float32")
        expected = np.convolve(mixture, weights[::-1, 0, talker], mode="same")
        assert rate == 8000 and np.abs(estimate - expected)[1:-1].max() < 1e-5


def test_is_measured(folder):
    printed = speech.succeed(
        folder, "nn/benchmark.py", system="toy", seconds=0.2, repeats=1, json="cost.json", corpus_flags=False
    )
    assert "forward_cpu_s" in printed
    assert json.loads((folder / "cost.json").read_text())["cost"]["parameters"] == 6


def test_is_exported(folder):
    speech.succeed(
        folder,
        "nn/export.py",
        resume_model=f"{RUN}/whole",
        output_dir="exported",
        formats="saved_model",
        corpus_flags=False,
    )
    described = json.loads((folder / "exported/export.json").read_text())
    assert described["talkers"] == 2 and list(described["checkpoints"]) == ["toy"]


def test_its_recipe_runs_and_refuses_flags_that_no_command_has(folder, monkeypatch, capfd):
    for name in ("feat", "models", "nn", "tests"):
        (folder / name).symlink_to(speech.ROOT / name)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(speech.ROOT), str(speech.ROOT / "tests")]))
    assert "separates nothing" in pipeline.list_recipes()
    assert pipeline.main(["toy", "--exp_name", "made", "--epoch=2", "--seed", "3"]) == 0
    said = capfd.readouterr().out
    assert said.index("== stage 1: training") < said.index("7 in all") < said.index("== stage 2: separation")
    assert (folder / "exp/made/separated/mixture_s2.wav").exists()
    assert pipeline.main(["toy", "--epohc=2"]) == 1
    assert "Did you mean --epoch?" in capfd.readouterr().err
