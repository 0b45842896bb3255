"""Streaming: what comes out block by block equals what the whole file gives, and nn/live.py as a person runs it."""

import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import soundfile
import speech
import tensorflow as tf

from feat.signals.stft import istft, stft
from models.deep_casa.dense_unet import DenseUNet
from models.deep_casa.grouping import OnlineClustering, SequentialGrouping
from models.deep_casa.streaming import StreamingSeparator
from nn.checkpoints import ours as checkpoint
from nn.recordings.streams import compile_step
from nn.systems.deep_casa import clustering
from nn.systems.separator import Separator

FFT, HOP = 32, 8
RATE = 8000


def randomise(model, seed):
    """Weights as of a trained net, of both signs, statistics of the norms included."""
    random = np.random.default_rng(seed)
    draw = {
        "gamma": lambda shape: random.uniform(0.5, 1.5, shape) * random.choice([-1, 1], shape),
        "moving_variance": lambda shape: random.uniform(0.5, 1.5, shape),
        "alpha": lambda shape: random.uniform(-0.2, 1.3, shape),
        "kernel": lambda shape: random.standard_normal(shape) / np.sqrt(np.prod(shape[:-1])),
    }
    for variable in model.variables:
        if "seed" not in variable.path:
            other = lambda shape: 0.3 * random.standard_normal(shape)
            variable.assign(draw.get(variable.path.split("/")[-1], other)(variable.shape))
    return model


def make_networks(talkers=2, scales=2, with_grouping=True, causal=True, blocks=2):
    unet = randomise(DenseUNet(talkers=talkers, channels=5, scales=scales, bins=FFT // 2 + 1, causal=causal), 0)
    if not with_grouping:
        return unet, None
    sizes = dict(blocks=blocks, dilations=1 + blocks, units=12, bottleneck=8, embedding_dim=6)
    grouping = SequentialGrouping(talkers=talkers, bins=FFT // 2 + 1, scales=scales, causal=causal, **sizes)
    return unet, randomise(grouping, 1)


def recording(samples, seed=0):
    """Noise whose level changes."""
    random = np.random.default_rng(seed)
    return random.standard_normal(samples) * np.repeat(random.uniform(0, 0.3, -(-samples // 100)), 100)[:samples]


def whole_file(unet, grouping, samples, hop=HOP):
    """What the networks give on the whole file, [talkers, samples]."""
    spectra = stft(samples, FFT, hop)
    mixture = np.stack([spectra.real, spectra.imag], axis=-1).astype("float32")
    estimates = unet(mixture[None])
    if grouping is None:
        estimates = estimates[0].numpy()
    else:
        embeddings = grouping((mixture[None], estimates))[0]
        online = OnlineClustering(grouping.talkers)
        energies = tf.constant(np.sum(np.square(mixture), axis=(1, 2)))
        _, order = online.assign(online.initial_state(embeddings.shape[-1]), embeddings, energies)
        assert len(np.unique(order)) > 1  # or the order would not be tested
        estimates = clustering.permute(estimates[0].numpy(), order.numpy())
    return istft(estimates[..., 0] + 1j * estimates[..., 1], len(samples), FFT, hop, parity=False)


def in_blocks(stream, samples, sizes):
    """Outputs of blocks of these sizes, then of flush."""
    assert sum(sizes) == samples.shape[-1]
    return [*(stream.step(block) for block in np.split(samples, np.cumsum(sizes)[:-1], axis=-1)), stream.flush()]


def random_sizes(samples, most, seed):
    sizes = np.random.default_rng(seed).integers(0, most, samples)
    sizes = sizes[: np.searchsorted(np.cumsum(sizes), samples)]
    return [*sizes, samples - sizes.sum()]


def assert_close(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("talkers", "scales", "with_grouping", "hop"), [(2, 2, True, 8), (3, 1, True, 8), (2, 1, False, 12)]
)
def test_blocks_give_what_the_whole_file_gives(talkers, scales, with_grouping, hop):
    unet, grouping = make_networks(talkers, scales, with_grouping)
    samples = recording(1501)
    expected = whole_file(unet, grouping, samples, hop)
    stream = StreamingSeparator(unet, grouping, FFT, hop, compile_step)
    for sizes in ([1501], random_sizes(1501, 120, 0), [7] * 214 + [3], [0, 1500, 0, 1]):
        outputs = in_blocks(stream, samples, sizes)
        assert_close(np.concatenate(outputs, axis=1), expected)
        # What lies before the start of the next frame is ready.
        ready = np.maximum(0, (np.cumsum(sizes) - FFT) // hop + 1) * hop
        np.testing.assert_array_equal(np.cumsum([x.shape[1] for x in outputs[:-1]]), np.minimum(ready, 1501))


def test_without_compiling():
    unet, grouping = make_networks(scales=1)
    samples = recording(500)
    outputs = in_blocks(StreamingSeparator(unet, grouping, FFT, HOP), samples, [100, 400])
    assert_close(np.concatenate(outputs, axis=1), whole_file(unet, grouping, samples))


@pytest.fixture(scope="module")
def stream():
    return StreamingSeparator(*make_networks(), FFT, HOP, compile_step)


def test_nothing_of_the_future_leaks(stream):
    samples = recording(1000)
    changed = np.concatenate([samples[:600], 5 * recording(400, 1)])
    sizes = [100] * 10
    first, second = (in_blocks(stream, x, sizes) for x in (samples, changed))
    for ours, theirs in zip(first[:6], second[:6]):
        np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(first[6], second[6])


def test_a_new_recording_begins_anew_and_short_ones_are_silent(stream):
    samples = recording(300)
    once = np.concatenate(in_blocks(stream, samples, [300]), axis=1)
    stream.step(recording(200, 1))
    stream.reset()
    np.testing.assert_array_equal(np.concatenate(in_blocks(stream, samples, [300]), axis=1), once)
    assert stream.step(np.zeros(0)).shape == (2, 0)
    assert stream.flush().shape == (2, 0)
    np.testing.assert_array_equal(np.concatenate(in_blocks(stream, samples[:31], [31]), axis=1), np.zeros((2, 31)))


def test_only_causal_networks_stream():
    with pytest.raises(ValueError, match="dense_unet"):
        StreamingSeparator(*make_networks(scales=1, with_grouping=False, causal=False))
    with pytest.raises(ValueError, match="one channel"):
        StreamingSeparator(*make_networks(scales=1, with_grouping=False), FFT, HOP).step(np.zeros((1, 50)))


# The scripts --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with checkpoints of random nets: both causal stages, and a first stage that is not causal."""
    folder = tmp_path_factory.mktemp("live")
    config = dict(sample_rate=RATE, fft_size=FFT, hop_size=HOP)
    first_stage = make_networks(with_grouping=False, causal=False)[0]
    for run, model, more in (
        *((f"causal/{model.name}", model, {}) for model in make_networks(scales=1, blocks=1)),
        ("whole", first_stage, dict(pit="utterance")),
    ):
        prefix = str(folder / run / "x_model.ckpt_step_1")
        checkpoint.save(prefix, model, keras.optimizers.SGD(), {})
        checkpoint.write_config(os.path.dirname(prefix), model.name, model, **config, **more)
        checkpoint.mark_best(prefix)
    return folder


@pytest.fixture
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def expected_talkers(folder, samples):
    """With silence behind the recording, so that all of it is separated."""
    return Separator(str(folder / "causal"))(samples.astype("float32"), RATE)


def live(folder, samples=None, **named):
    """Runs nn/live.py with samples as raw float32 on stdin; gives what it wrote to stdout and stderr."""
    arguments = speech.command("nn/live.py", corpus_flags=False, **dict(resume_model="causal", format="f32le") | named)
    raw = None if samples is None else samples.astype("<f4").tobytes()
    done = subprocess.run(arguments, input=raw, capture_output=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr.decode()


def test_live_from_a_pipe_into_a_pipe(inside):
    samples = recording(5003)
    out, said = live(inside, samples, stdout="raw", output_dir="pipe", subtype="FLOAT")
    assert "latency 68.0 ms: window 4.0 ms (32 samples), block 64.0 ms" in said
    assert "0.6 s, real-time factor" in said and "worst block" in said
    talkers = np.frombuffer(out, "<f4").reshape(-1, 2).T
    assert_close(talkers, expected_talkers(inside, samples))
    for i, talker in enumerate(talkers):
        wav, rate = soundfile.read(f"pipe/live_s{i + 1}.wav", dtype="float32")
        assert rate == RATE
        np.testing.assert_array_equal(wav, talker)


def test_live_from_a_file_of_another_rate(inside):
    soundfile.write("stereo.wav", np.stack([recording(16000), recording(16000, 1)], axis=1), 16000)
    speech.succeed(
        inside, "nn/live.py", corpus_flags=False, resume_model="causal", input="stereo.wav", output_dir="live"
    )
    assert [soundfile.info(f"live/stereo_s{i}.wav").frames for i in (1, 2)] == [RATE] * 2  # at the rate of the system


def test_separate_streams_unless_told_otherwise(inside):
    samples = recording(4000)
    soundfile.write("mono.wav", samples, RATE, subtype="FLOAT")
    named = dict(corpus_flags=False, resume_model="causal", subtype="FLOAT", window_seconds=0.2, overlap_seconds=0.1)
    for grouping in ("auto", "kmeans"):
        speech.succeed(inside, "nn/separate.py", "mono.wav", grouping=grouping, output_dir=grouping, **named)
    auto, kmeans = (soundfile.read(f"{grouping}/mono_s1.wav")[0] for grouping in ("auto", "kmeans"))
    assert_close(auto, expected_talkers(inside, samples)[0])
    assert not np.allclose(kmeans, auto, atol=1e-3)


@pytest.mark.parametrize("ending", [signal.SIGINT, None], ids=["Ctrl-C", "broken pipe"])
def test_a_recording_that_is_broken_off_is_kept(inside, ending):
    samples = recording(RATE)
    out = f"broken_off_{ending}"
    arguments = speech.command(
        "nn/live.py",
        corpus_flags=False,
        resume_model="causal",
        format="f32le",
        output_dir=out,
        stdout="raw",
        subtype="FLOAT",
    )
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with subprocess.Popen(arguments, cwd=inside, **pipes) as process:
        process.stdin.write(samples.astype("<f4").tobytes())
        process.stdin.flush()
        process.stdout.read(RATE // 2 * 8)  # both talkers of the first half second
        if ending:
            process.send_signal(ending)
            # Nothing ends stdin.
        else:
            process.stdout.close()
            process.stdin.close()
        said = process.stderr.read().decode()
        assert process.wait(60) == 0, said
    assert "real-time factor" in said and "Traceback" not in said and "Exception" not in said
    expected = expected_talkers(inside, samples)
    assert sorted(os.listdir(out)) == ["live_s1.wav", "live_s2.wav"]
    for i in (1, 2):
        wav = soundfile.read(f"{out}/live_s{i}.wav")[0]
        assert RATE // 2 <= len(wav) <= RATE
        # The last window saw silence instead of what was not taken any more.
        assert_close(wav[:-FFT], expected[i - 1, : len(wav) - FFT])


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (dict(resume_model="whole"), "train both stages with --causal"),
        (dict(input="none.wav"), "none.wav: no such file"),
        (dict(input="none.raw"), "none.raw: no such file"),
        (dict(input="text.wav"), "text.wav: not an audio file"),
        (dict(output_dir=""), "nowhere to write"),
        (dict(level="none"), "--level: Deep CASA has no use for it"),
    ],
)
def test_live_refuses(inside, named, said):
    (inside / "text.wav").write_text("not audio")
    assert said in speech.refuse(inside, "nn/live.py", corpus_flags=False, **dict(resume_model="causal") | named)


def test_separate_refuses_to_stream_what_is_not_causal(inside):
    soundfile.write("ok.wav", recording(2000), RATE)
    named = dict(corpus_flags=False, resume_model="whole", grouping="online")
    assert "train both stages with --causal" in speech.refuse(inside, "nn/separate.py", "ok.wav", **named)


def test_without_sounddevice_the_microphone_is_refused(inside, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    named = dict(corpus_flags=False, resume_model="causal", input="microphone")
    assert "deep-casa[live]" in speech.refuse(inside, "nn/live.py", **named)
