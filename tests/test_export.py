"""nn/export.py as a person runs it, and the pieces that let a whole separator be one graph."""

import importlib.util
import json
import os
import shutil
import sys

import keras
import numpy as np
import pytest
import speech
import tensorflow as tf
from keras import ops
from tiny_deep_casa import FFT, HOP, RATE, nets, save

from models.deep_casa import grouping
from models.deep_casa.dense_unet import uncompress
from models.deep_casa.waveforms import DeepCasaSeparator
from models.layers import spectral
from models.layers.conv import portable_graphs
from models.layers.waveforms import OneRecording
from models.losses import permutations
from models.spex_plus.network import VARIANTS, SpexPlus
from nn.checkpoints import ours as checkpoint
from nn.export import FORMATS
from nn.systems.deep_casa import clustering
from nn.systems.separator import Separator
from nn.systems.spex_plus.recordings import Extractor, frame_powers

PACKAGES = ("tf2onnx", "onnx", "onnxruntime", "ai_edge_litert")
needs_extra = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in PACKAGES), reason="the extra [export] is not installed"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints of all kinds of systems."""
    folder = tmp_path_factory.mktemp("export")
    save(folder / "whole", *nets(2, False))
    save(folder / "causal", *nets(3, True))
    save(folder / "upit", nets(2, False)[0], None, pit="utterance")
    return folder


def run(folder, *arguments, runner=speech.succeed, **named):
    arguments = [*arguments, *(f"--{name}={value}" for name, value in named.items())]
    return runner(folder, "nn/export.py", *arguments, corpus_flags=False)


def mixture(samples):
    return (speech.voice(1, 0, 3) + speech.voice(2, 0, 3))[:samples]


def same_talkers(ours, theirs, tolerance=1e-3):
    """Whether two separations are equal up to the order of the talkers."""
    scale = np.abs(theirs).max()
    return min(np.abs(ours[list(order)] - theirs).max() for order in permutations(len(ours))) <= tolerance * scale


@needs_extra
@pytest.mark.parametrize(("system", "talkers", "samples"), [("whole", 2, 3200), ("causal", 3, 2400)])
def test_every_format(folder, system, talkers, samples):
    printed = run(folder, resume_model=system, output_dir=f"out_{system}", seconds=samples / RATE)
    out = folder / f"out_{system}"
    assert sorted(os.listdir(out)) == ["export.json", "saved_model", "separator.onnx", "separator.tflite"]
    described = json.loads((out / "export.json").read_text())
    assert (described["sample_rate"], described["talkers"], described["fft_size"]) == (RATE, talkers, FFT)
    assert described["config"]["dense_unet"]["model"]["talkers"] == talkers
    assert described["files"]["litert"]["samples"] == samples and described["files"]["onnx"]["samples"] is None
    assert "onnx: largest relative error" in printed
    # As the README says.
    import onnxruntime
    from ai_edge_litert.interpreter import Interpreter

    loaded = tf.saved_model.load(str(out / "saved_model"))
    session = onnxruntime.InferenceSession(str(out / "separator.onnx"))
    lite = Interpreter(str(out / "separator.tflite")).get_signature_runner()
    for length in (1, 999, samples):
        x = mixture(length)
        from_tensorflow = loaded.serve(x).numpy()
        (from_onnx,) = session.run(None, {"mixture": x})
        assert from_tensorflow.shape == from_onnx.shape == (talkers, length)
        np.testing.assert_allclose(from_onnx, from_tensorflow, atol=1e-3 * np.abs(from_tensorflow).max())
    from_lite = lite(mixture=mixture(samples))["output_0"]
    np.testing.assert_allclose(from_lite, from_tensorflow, atol=1e-3 * np.abs(from_tensorflow).max())


def test_causal_gives_what_separate_gives(folder):
    separator = Separator(str(folder / "causal"))
    x = mixture(5001)
    model = DeepCasaSeparator(separator.system.unet, separator.system.grouping, FFT, HOP)
    ours, theirs = np.array(OneRecording(model)(x)), separator(x, RATE)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_utterance_level_training_gives_what_separate_gives(folder, monkeypatch):
    monkeypatch.chdir(folder)
    os.makedirs("out_upit")
    for name in ("separator.onnx", "mine.txt"):
        with open(f"out_upit/{name}", "w", encoding="utf-8") as file:
            file.write("of an earlier export, and not")
    run(folder, resume_model="upit", output_dir="out_upit", formats="saved_model")
    assert sorted(os.listdir("out_upit")) == ["export.json", "mine.txt", "saved_model"]
    x = mixture(5000)
    loaded = tf.saved_model.load("out_upit/saved_model")
    ours, theirs = loaded.serve(x).numpy(), Separator("upit")(x, RATE)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (dict(formats="saved_model"), "--resume_model is missing"),
        (dict(formats="saved_model", resume_model="nowhere"), "nowhere: no checkpoint here"),
        (dict(formats="torch", resume_model="whole"), "--formats torch: unknown; give some of saved_model,onnx,litert"),
        (dict(formats="saved_model", resume_model="whole/dense_unet/best"), "give the checkpoint of the second stage"),
    ],
)
def test_refuses(folder, arguments, said):
    assert said in run(folder, runner=speech.refuse, output_dir="refused", **arguments)
    assert not os.path.exists(folder / "refused")


def test_a_missing_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    line = run(folder, runner=speech.refuse, resume_model="whole", output_dir="refused", formats="onnx")
    assert "onnxruntime" in line and "pip install -e '.[export]'" in line
    assert not os.path.exists(folder / "refused")


@needs_extra
def test_nothing_is_kept_over_the_tolerance(folder):
    line = run(
        folder, runner=speech.refuse, resume_model="upit", output_dir="inexact", formats="litert", tolerance=1e-12
    )
    assert "over --tolerance 1e-12" in line
    assert not os.path.exists(folder / "inexact")


@pytest.mark.parametrize("sizes", [(256, 64), (64, 32), (96, 40)])
def test_real_stft_is_the_stft(sizes):
    x = np.random.default_rng(0).standard_normal((2, 3, 700)).astype(np.float32)
    spectra = spectral.stft(x, *sizes)
    np.testing.assert_allclose(spectral.real_stft(x, *sizes), spectra, atol=1e-4)
    # Imaginary parts of bin 0 and Nyquist are ignored by both.
    spectra = spectra + np.random.default_rng(1).standard_normal(spectra.shape).astype(np.float32)
    for options in ({}, {"parity": True, "frames_before": 3}):
        np.testing.assert_allclose(
            spectral.real_istft(spectra, *sizes, **options), spectral.istft(spectra, *sizes, **options), atol=1e-3
        )


def test_portable_masks_are_the_masks():
    x = np.concatenate([np.geomspace(1e-6, 9.9, 500), -np.geomspace(1e-6, 9.9, 500)]).astype(np.float32)
    with portable_graphs():
        ours = np.array(uncompress(x))
    np.testing.assert_allclose(ours, 20 * np.arctanh(x.astype(float) / 10), rtol=1e-5)
    np.testing.assert_allclose(np.array(uncompress(x)), ours, rtol=1e-5)


@pytest.mark.parametrize("clusters", [2, 3, 4])
def test_kmeans_finds_what_scipy_finds(clusters):
    random = np.random.default_rng(clusters)
    truth = random.integers(clusters, size=200)
    points = (np.eye(clusters, 5)[truth] + 0.1 * random.standard_normal((200, 5))).astype(np.float32)
    weights = (np.arange(200) % 3 > 0).astype(np.float32)
    points[weights == 0] += random.uniform(-9, 9, (np.sum(weights == 0), 5))  # must not matter
    ours = np.array(grouping.kmeans(points, weights, clusters))
    theirs = clustering.kmeans(points[weights == 1], clusters, 0)
    order = np.argmin(np.sum((ours[:, None] - theirs) ** 2, axis=-1), axis=1)
    assert sorted(order) == list(range(clusters))
    np.testing.assert_allclose(ours, theirs[order], atol=1e-4)


@pytest.mark.parametrize("talkers", [2, 3])
def test_whole_file_assignment_is_that_of_inference(talkers):
    random = np.random.default_rng(talkers)
    frames, per_frame, orders = 150, 1 if talkers == 2 else talkers, permutations(talkers)
    truth = random.integers(len(orders), size=frames)
    labels = truth[:, None] if talkers == 2 else orders[truth]
    embeddings = np.eye(talkers, 6)[labels] + 0.1 * random.standard_normal((frames, per_frame, 6))
    embeddings = embeddings.astype(np.float32)
    estimates = random.standard_normal((talkers, frames, 5, 2)).astype(np.float32)
    estimates[:, 100:] *= 1e-3  # silence, whose embeddings must not count
    embeddings[100:] = random.uniform(-9, 9, (50, per_frame, 6))
    ours = np.array(grouping.whole_file_assignment(ops.convert_to_tensor(embeddings), ops.convert_to_tensor(estimates)))
    theirs = clustering.whole_file_assignment(embeddings, estimates)
    assert same_talkers(clustering.permute(estimates, ours), clustering.permute(estimates, theirs), 0)
    # The loudest frame keeps its order.
    assert ours[np.argmax(np.sum(estimates**2, axis=(0, 2, 3)))] == 0
    again = grouping.whole_file_assignment(ops.convert_to_tensor(embeddings), ops.convert_to_tensor(estimates))
    np.testing.assert_array_equal(ours, again)


def test_the_graph_separates_as_separate_does(folder, monkeypatch):
    """Where the clusters are clear both give the same talkers: the same spectra, edges and levels."""
    separator = Separator(str(folder / "whole"))
    system = separator.system

    def embed(estimates):
        """One of two embeddings for each frame, from the louder estimate; they stand for a well-trained net's."""
        louder = ops.sum(ops.square(estimates[:, 0]) - ops.square(estimates[:, 1]), axis=(-2, -1)) > 0
        return ops.cast(ops.stack([louder, ops.logical_not(louder)], axis=-1), "float32")[:, :, None]

    def analyse(window):
        estimates, _ = type(system).analyse(system, window)
        return estimates, np.array(embed(estimates[None])[0])

    monkeypatch.setattr(system, "analyse", analyse)
    model = DeepCasaSeparator(system.unet, system.grouping, FFT, HOP)
    model.sequential = ClearGrouping(embed)
    x = mixture(6001)
    assert same_talkers(np.array(OneRecording(model)(x)), separator(x, RATE))


class ClearGrouping:
    causal = False

    def __init__(self, embed):
        self.embed = embed

    def __call__(self, inputs):
        return self.embed(inputs[1])


# SpEx+ --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spex_plus(folder):
    """An extractor of random weights, whose checkpoint lies below `folder`/spex_plus."""
    keras.utils.set_random_seed(0)
    sizes = dict(filters=8, bottleneck=6, units=10, embedding_dim=5, speaker_units=7, dilations=2, repeats=1, classes=3)
    model = SpexPlus(**VARIANTS["authors"] | sizes)
    run = folder / "spex_plus"
    checkpoint.save(str(run / "tiny_model.ckpt_step_1"), model, keras.optimizers.SGD(), {})
    checkpoint.mark_best(str(run / "tiny_model.ckpt_step_1"))
    checkpoint.write_config(str(run), "spex_plus", model, sample_rate=RATE)
    return Extractor(model)


@needs_extra
def test_extractor_in_all_formats(folder, spex_plus):
    """Each gives what nn/spex_plus.py extracts, of any lengths where any are taken."""
    printed = run(folder, resume_model="spex_plus", output_dir="out", seconds=0.5, enrolment_seconds=0.75)
    described = json.loads((folder / "out/export.json").read_text())
    assert described["talkers"] == 1 and described["sample_rate"] == RATE
    assert described["files"]["litert"]["samples"] == [4000, 6000]
    assert "onnx: largest relative error" in printed
    formats = {name: FORMATS[name].load(str(folder / "out" / described["files"][name]["path"])) for name in FORMATS}
    for lengths in ((1, 30), (3001, 2000), (4000, 6000)):
        waveforms = {name: mixture(n) for name, n in zip(("mixture", "enrolment"), lengths)}
        expected = spex_plus(waveforms["mixture"], spex_plus.embed(waveforms["enrolment"]))
        for name, separate in formats.items():
            if name != "litert" or lengths == (4000, 6000):
                (found,) = separate(waveforms)
                np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


@needs_extra
def test_exported_extractor_hears_at_the_levels_of_training(folder, spex_plus):
    """Recordings of any level are extracted as nn/separate.py does."""
    source = folder / "levels"
    shutil.copytree(folder / "spex_plus", source)
    config = json.loads((source / "config.json").read_text()) | {"levels_db": {"mixture": -20.0, "enrolment": -30.0}}
    (source / "config.json").write_text(json.dumps(config))
    run(folder, resume_model=source, output_dir="out_levels", seconds=1, enrolment_seconds=1)
    formats = {name: form.load(str(folder / "out_levels" / form.path)) for name, form in FORMATS.items()}
    separator, plain = Separator(str(source)), Separator(str(folder / "spex_plus"))
    voice = speech.voice(1, 5, 1)
    for x in (mixture(8000), 0.1 * mixture(8000), 0.1 * mixture(8000) * (np.arange(8000) > 5000)):
        expected = separator(x, RATE, enrolment=0.1 * voice)[0]
        other = plain(x, RATE, enrolment=0.1 * voice)[0]
        assert np.sum((other - expected) ** 2) > 1e-3 * np.sum(expected**2)  # else this would tell nothing
        for name, separate in formats.items():
            (found,) = separate({"mixture": x, "enrolment": 0.1 * voice})
            error = np.sum((found - expected) ** 2) / np.sum(expected**2)
            assert 10 * np.log10(max(error, 1e-12)) < -50, name
    # Parts of the last frame, less than a frame, and silence.
    extractor = separator.system.extractor
    for name in ("saved_model", "onnx"):
        for lengths in ((3333, 4777), (30, 4777)):
            waveforms = {name: 0.1 * mixture(n) for name, n in zip(("mixture", "enrolment"), lengths)}
            gain = extractor.gain("enrolment", frame_powers(waveforms["enrolment"], extractor.frame))
            expected = extractor(waveforms["mixture"], extractor.embed(gain * waveforms["enrolment"]))
            np.testing.assert_allclose(formats[name](waveforms)[0], expected, atol=1e-3 * np.abs(expected).max())
        assert not np.any(formats[name]({"mixture": np.zeros(3000, np.float32), "enrolment": voice}))
