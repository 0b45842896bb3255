"""Binaural TasNet block by block and in windows: two ears in, two ears of every talker out."""

import os

import keras
import numpy as np
import pytest
import soundfile
import speech
from golden_case import Case
from test_streaming import in_blocks, live, random_sizes, recording

from feat.base.parallel import progress
from feat.signals.audio import resample
from models.binaural_tasnet.network import MimoTasnet
from models.binaural_tasnet.streaming import StreamingBinaural
from nn.checkpoints import binaural_tasnet, readers
from nn.checkpoints import ours as checkpoint
from nn.demo import separate_recording
from nn.recordings.streams import compile_step
from nn.recordings.windows import join
from nn.systems.separator import Separator

SIZES = dict(filters=6, bottleneck=5, units=8, dilations=3, repeats=2)
CAUSAL = dict(causal=True, norm="channel")
RATE = speech.RATE


def make_model(**settings):
    """A small model with weights of both signs, statistics of the norms included."""
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    model = MimoTasnet(**SIZES | settings)
    for weight in model.weights:
        if "seed" not in weight.path:
            noise = random.normal(0, 0.2, weight.shape)
            weight.assign(weight + (np.abs(noise) if "variance" in weight.name else noise))
    return model


def ears(samples, seed=0):
    """Noise whose level changes, another at either ear: float32 [2, samples]."""
    return np.stack([recording(samples, seed), 0.5 * recording(samples, seed + 100)]).astype("float32")


def whole_file(model, samples):
    return np.moveaxis(model(samples.T[None])[0].numpy(), -1, 1)


def assert_close(found, expected, share=1e-5):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=share * np.abs(expected).max())


# The stream ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        dict(norm="channel"),
        dict(norm="cumulative", talkers=3, window=22, taps=5),
        dict(norm="cumulative", wiring="independent", mask="softmax"),
        dict(norm="batch", mask="softmax", parity=True),
        dict(norm="channel", wiring="cross", features=("ild", "ipd")),
        dict(norm="cumulative", wiring="cross", window=22, projection="fixed"),
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_blocks_give_what_the_whole_file_gives(settings):
    model = make_model(causal=True, **settings)
    samples = ears(2007)
    expected = whole_file(model, samples)
    stream = StreamingBinaural(model, compile_step)
    for sizes in ([2007], random_sizes(2007, 300, 0), random_sizes(2007, 40, 1), [0, 2006, 0, 1]):
        outputs = in_blocks(stream, samples, sizes)
        assert_close(np.concatenate(outputs, axis=-1), expected)
        # No sample waits longer than for a window.
        ready = np.maximum(0, (np.cumsum(sizes) - model.window) // model.hop + 1) * model.hop
        np.testing.assert_array_equal(np.cumsum([x.shape[-1] for x in outputs[:-1]]), ready)
    assert stream.latency == model.window


def test_nothing_of_the_future_leaks_nor_of_another_recording():
    stream = StreamingBinaural(make_model(**CAUSAL), compile_step)
    samples = ears(1500)
    changed = np.concatenate([samples[:, :900], 5 * ears(600, 1)], axis=1)
    first, second = (np.concatenate(in_blocks(stream, x, [100] * 15), axis=-1) for x in (samples, changed))
    same = (900 - 16) // 8 * 8 + 8  # up to the first frame that sees a change
    np.testing.assert_array_equal(first[..., :same], second[..., :same])
    assert np.abs(first - second)[..., same : same + 16].max() > 0
    stream.step(changed)
    stream.reset()
    np.testing.assert_array_equal(np.concatenate(in_blocks(stream, samples, [100] * 15), axis=-1), first)
    short = ears(15)
    np.testing.assert_array_equal(np.concatenate(in_blocks(stream, short, [15]), axis=-1), np.zeros((2, 2, 15)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(causal=False), "a convolution"),
        (dict(norm="global"), "global norm"),
        (dict(wiring="cross", projection="random"), "new random numbers"),
        (dict(wiring="cross", parity=True), "frames to come"),
    ],
)
def test_what_cannot_stream(settings, said):
    with pytest.raises(ValueError, match=said):
        StreamingBinaural(make_model(**CAUSAL | settings))
    with pytest.raises(ValueError, match=r"\[2, samples\]"):
        StreamingBinaural(make_model(**CAUSAL)).step(np.zeros(50))


def test_talkers_keep_their_places_although_windows_turn():
    """Told apart by the right ear; at the left one they are alike."""
    random = np.random.default_rng(0)
    talkers = random.standard_normal((3, 2, 1000))
    talkers[1:, 0] = talkers[0, 0]
    orders = {0: [0, 1, 2], 300: [2, 0, 1], 600: [1, 0, 2]}
    windows = ((start, talkers[order, :, start : start + 400]) for start, order in orders.items())
    np.testing.assert_allclose(np.concatenate(list(join(windows, match=True)), axis=-1), talkers, atol=1e-12)


# The scripts --------------------------------------------------------------------------------------

MODELS = {"causal": CAUSAL, "whole": dict(talkers=3)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints of random nets, and recordings."""
    folder = tmp_path_factory.mktemp("two_ears")
    for run, settings in MODELS.items():
        model, prefix = make_model(**settings), str(folder / run / "x_model.ckpt_step_1")
        checkpoint.save(prefix, model, keras.optimizers.SGD(), {})
        checkpoint.write_config(os.path.dirname(prefix), "mimo_tasnet", model, sample_rate=RATE)
        checkpoint.mark_best(prefix)
    soundfile.write(folder / "ears.wav", ears(4003).T, RATE, subtype="FLOAT")
    soundfile.write(folder / "other_rate.flac", ears(30_000).T, 44100)
    soundfile.write(folder / "short.wav", ears(160).T, RATE)
    soundfile.write(folder / "mono.wav", ears(4003)[0], RATE)
    return folder


@pytest.fixture
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def expected_talkers(run, samples):
    """Of the whole recording, with silence behind it, so that all of it lies in whole windows."""
    return whole_file(make_model(**MODELS[run]), np.pad(samples, ((0, 0), (0, 50))))[..., : samples.shape[-1]]


def separate(folder, *arguments, runner=speech.succeed, **named):
    return runner(folder, "nn/separate.py", *arguments, corpus_flags=False, **dict(subtype="FLOAT") | named)


def read_talkers(stem, talkers):
    found = [soundfile.read(f"{stem}_s{k + 1}.wav", always_2d=True) for k in range(talkers)]
    return np.stack([x.T for x, _ in found]), found[0][1]


@pytest.mark.parametrize("run, talkers", [("causal", 2), ("whole", 3)])
def test_separated_files_are_what_the_network_gives(inside, run, talkers):
    """And the causal one, which streams, the same as in Python, and says how fast it is."""
    heard = soundfile.read("ears.wav", dtype="float32")[0].T
    printed = separate(inside, "ears.wav", resume_model=run, output_dir=run)
    speed = "causal: latency 2.0 ms (window of 16 samples); 0.5 s, real-time factor "
    assert printed.count(speed) == printed.count("latency") == (run == "causal")
    assert "latency" not in separate(inside, "ears.wav", resume_model=run, output_dir=run)  # nothing was left to do
    found, rate = read_talkers(f"{run}/ears", talkers)
    assert rate == RATE and found.shape == (talkers, 2, 4003)
    if run == "causal":
        assert_close(found, expected_talkers(run, heard))
    assert_close(found, Separator(run)(heard, RATE), 1e-6)


def test_windows_of_any_recording(inside):
    names = dict(short=(160, RATE), other_rate=(30_000, 44100))
    windows = dict(window_seconds=0.3, overlap_seconds=0.1)
    separate(inside, "short.wav", "other_rate.flac", resume_model="whole", output_dir="any", **windows)
    for name, (samples, rate) in names.items():
        found, its_rate = read_talkers(f"any/{name}", 3)
        assert found.shape == (3, 2, samples) and its_rate == rate and np.isfinite(found).all() and found.any()
    # What a network of a short memory gives of a window is what it gives of the whole, but for where the window begins.
    heard = soundfile.read("ears.wav", dtype="float32")[0].T
    found = Separator("causal", **windows, grouping="kmeans")(heard, RATE)
    expected = expected_talkers("causal", heard)
    for part in (slice(1600), slice(2500, None)):
        assert_close(found[..., part], expected[..., part], 1e-4)


def test_what_is_too_loud_keeps_its_level_differences(inside):
    soundfile.write("loud.wav", 500 * soundfile.read("ears.wav")[0], RATE, subtype="FLOAT")
    assert "made quieter by" in separate(inside, "loud.wav", resume_model="causal", output_dir="loud", subtype="PCM_16")
    separate(inside, "loud.wav", resume_model="causal", output_dir="exact")
    ours, exact = read_talkers("loud/loud", 2)[0], read_talkers("exact/loud", 2)[0]
    np.testing.assert_allclose(ours, exact / np.abs(exact).max(), atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "named", "said"),
    [
        (["mono.wav"], {}, "mono.wav: 1 channel, the two of a binaural recording are needed"),
        (["ears.wav"], dict(channels="each"), "--channels: Binaural TasNet takes both ears"),
        (["ears.wav"], dict(enrolment="mono.wav"), "Binaural TasNet takes all talkers apart"),
        (["ears.wav"], dict(resume_model="whole", grouping="online"), "train with --causal"),
    ],
)
def test_separate_refuses(inside, arguments, named, said):
    named = dict(resume_model="causal", output_dir="refused") | named
    assert said in separate(inside, *arguments, runner=speech.refuse, **named)
    with pytest.raises(ValueError, match=r"two ears, \[2, samples\]"):
        Separator("causal")(np.zeros(50), RATE)


def test_live_from_a_pipe_into_a_pipe(inside):
    samples = ears(5003)
    out, said = live(inside, samples.T, stdout="raw", output_dir="pipe", subtype="FLOAT", input_channels=2)
    assert "latency 66.0 ms: window 2.0 ms (16 samples), block 64.0 ms" in said
    assert "0.6 s, real-time factor" in said and "worst block" in said
    found = read_talkers("pipe/live", 2)[0]
    assert_close(found, expected_talkers("causal", samples))
    np.testing.assert_array_equal(np.frombuffer(out, "<f4").reshape(-1, 2, 2).transpose(1, 2, 0), found)


def test_live_from_a_file_of_another_rate(inside):
    named = dict(corpus_flags=False, resume_model="causal", input="other_rate.flac", output_dir="live", subtype="FLOAT")
    speech.succeed(inside, "nn/live.py", **named)
    found, rate = read_talkers("live/other_rate", 2)
    assert rate == RATE
    heard = soundfile.read("other_rate.flac", dtype="float32")[0].T
    brought = np.stack([resample(ear, 44100, RATE) for ear in heard])
    assert_close(found, expected_talkers("causal", brought), 1e-4)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (dict(resume_model="whole"), "not causal"),
        (dict(input="mono.wav"), "mono.wav: 1 channel, the two"),
        (dict(input="ears.raw"), "--input_channels 2"),
    ],
)
def test_live_refuses(inside, named, said):
    assert said in speech.refuse(inside, "nn/live.py", corpus_flags=False, **dict(resume_model="causal") | named)


# SpeechBrain --------------------------------------------------------------------------------------

RUNS = ("results/convtasnet-parallel-noise/12", "as/it/is")


@pytest.fixture(scope="module")
def speechbrain(folder):
    """`save` below either of RUNS, with a worse checkpoint beside the best."""
    torch = pytest.importorskip("torch")
    weights = Case(speech.ROOT / "tests/golden/binaural/cross_small.npz").weights()  # of parallel as well
    for run in RUNS:
        for name, loss, factor in (("CKPT+a+00", -3.5, 1.0), ("CKPT+b+00", -1.25, 2.0)):
            checkpoint_folder = folder / run / "save" / name
            checkpoint_folder.mkdir(parents=True)
            for part, path in binaural_tasnet.part_files(checkpoint_folder).items():
                own = {k.split(".", 1)[1]: torch.tensor(factor * x) for k, x in weights.items() if k.startswith(part)}
                torch.save(own, path)
            (checkpoint_folder / "CKPT.yaml").write_text(f"end-of-epoch: true\nsnr: {loss}\n")
    return [str(folder / run / "save") for run in RUNS]


def assert_separates_as(wiring, source):
    """As the network of the best checkpoint does with silence behind the recording."""
    model = MimoTasnet(**readers.open_reader(source).settings() | {"wiring": wiring})
    readers.load_for_inference(source, "mimo_tasnet", model)
    samples = ears(4003)
    silence = (-(-4003 // model.hop) + 2) * model.hop - 4003
    expected = whole_file(model, np.pad(samples, ((0, 0), (0, silence))))[..., :4003]
    assert_close(Separator(source)(samples, RATE), expected, 1e-4)


def said_of_wiring(capsys):
    """Lines on stderr, where TensorFlow writes too."""
    return [line for line in capsys.readouterr().err.splitlines() if ": taken as " in line]


def test_folders_of_speechbrain_separate(inside, speechbrain, capsys):
    """`save`, of which the best is taken, and a checkpoint in it; the names of folders tell cross from parallel."""
    for source in (speechbrain[0], f"{speechbrain[0]}/CKPT+a+00/"):
        assert_separates_as("parallel", source)
    assert not said_of_wiring(capsys)
    save = os.path.relpath(speechbrain[0])
    separate(inside, "ears.wav", resume_model=save, output_dir="speechbrain")
    assert "separated already" in separate(inside, "ears.wav", resume_model=save, output_dir="speechbrain")
    with open("speechbrain/separate.json", encoding="utf-8") as file:
        assert "convtasnet-parallel-noise/12/save/CKPT+a+00" in file.read()


def test_wiring_that_speechbrain_does_not_tell(inside, speechbrain, capsys, monkeypatch):
    save = speechbrain[1]
    monkeypatch.chdir(save)
    assert_separates_as("parallel", ".")
    (line,) = said_of_wiring(capsys)
    assert "taken as parallel" in line and "into a folder named convtasnet-cross" in line
    named = inside / "results/convtasnet-cross/12"
    named.mkdir(parents=True)
    os.rename(save, named / "save")
    assert_separates_as("cross", ".")  # a folder above the working folder
    (line,) = said_of_wiring(capsys)
    assert "taken as cross" in line and "drawn from a fixed seed" in line
    os.rename(named / "save", save)
    (inside / "as/it/is/hyperparams.yaml").write_text("seed: 1\nexperiment_name: convtasnet-cross\n")
    assert_separates_as("cross", save)
    (inside / "as/it/is/hyperparams.yaml").unlink()


def test_speechbrain_is_refused_where_it_cannot_be_used(inside, speechbrain):
    source = speechbrain[0]
    for named in (source, f"{source}/CKPT+a+00"):
        line = speech.refuse(inside, "nn/live.py", corpus_flags=False, resume_model=named, input="ears.wav")
        assert "CKPT+a+00: not causal" in line
    half = inside / "half/save/CKPT+a+00"
    half.mkdir(parents=True)
    (half / "encoderL.ckpt").write_bytes(b"PK")
    line = separate(inside, "ears.wav", runner=speech.refuse, resume_model="half/save", output_dir="refused")
    assert "half/save: no checkpoint marked best below it, nor a whole CKPT+... of SpeechBrain" in line


def test_the_page_plays_both_ears(inside):
    os.makedirs("page", exist_ok=True)
    shown, line = separate_recording(Separator("causal"), "ears.wav", "page", progress)
    assert "two ears" in line and len(shown) == 3
    for wav, picture in shown:
        assert soundfile.info(wav).channels == 2 and os.path.getsize(picture) > 1000
