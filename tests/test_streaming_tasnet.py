"""SpEx+ block by block: equal to the whole file, with no more of the future than its longest window."""

import os

import keras
import numpy as np
import pytest
import soundfile
import speech
from test_streaming import assert_close, in_blocks, random_sizes, recording

from feat.audio import read_resampled
from models.spex_plus import VARIANTS, SpexPlus
from models.streaming_tasnet import StreamingExtractor
from nn import checkpoint
from nn.streams import compile_step

SIZES = dict(filters=8, bottleneck=6, units=10, embedding_dim=5, speaker_units=7, dilations=3, repeats=2, classes=3)
WINDOWS = (20, 80, 160)
HOP = 10


def make_model(variant="authors", **settings):
    """A small model with weights of both signs, statistics of the norms included."""
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    model = SpexPlus(**VARIANTS[variant] | SIZES | dict(windows=WINDOWS, causal=True, norm="cumulative") | settings)
    for weight in model.weights:
        noise = random.normal(0, 0.2, weight.shape)
        weight.assign(weight + (np.abs(noise) if "variance" in weight.name else noise))
    return model


def embedding(seed=0):
    return np.random.default_rng(seed).standard_normal(SIZES["embedding_dim"]).astype("float32")


def whole_file(model, samples, seed=0):
    return model.extract(samples[None].astype("float32"), embedding(seed)[None])["short"].numpy()


@pytest.mark.parametrize(
    "settings",
    [
        dict(norm="cumulative"),
        dict(norm="cumulative", variant="seed", windows=(24, 96, 190), mask="sigmoid"),
        dict(norm="channel", mask="softmax", taps=5),
        dict(norm="batch", variant="seed"),
    ],
)
def test_blocks_give_what_the_whole_file_gives(settings):
    model = make_model(**settings)
    samples = recording(2007)
    expected = whole_file(model, samples)
    stream = StreamingExtractor(model, embedding(), compile_step)
    for sizes in ([2007], random_sizes(2007, 300, 0), random_sizes(2007, 40, 1), [7] * 286 + [5], [0, 2006, 0, 1]):
        outputs = in_blocks(stream, samples, sizes)
        assert_close(np.concatenate(outputs, axis=1), expected)
        # Frames whose longest window has come in are done: no sample waits longer than for that.
        hop, window = model.hop, model.windows[2]
        ready = np.maximum(0, (np.cumsum(sizes) - window) // hop + 1) * hop
        np.testing.assert_array_equal(np.cumsum([x.shape[1] for x in outputs[:-1]]), ready)
    assert stream.latency == model.windows[2]


@pytest.mark.parametrize("samples", [1, 19, 20, 29, 30, 159, 160, 161])
def test_short_mixtures(samples):
    model = make_model()
    mixture = recording(samples)
    expected = whole_file(model, np.pad(mixture, (0, max(0, WINDOWS[0] - samples))))[:, :samples]
    stream = StreamingExtractor(model, embedding())
    assert_close(np.concatenate(in_blocks(stream, mixture, [samples]), axis=1), expected)


def test_nothing_of_the_future_leaks():
    model = make_model()
    stream = StreamingExtractor(model, embedding(), compile_step)
    samples = recording(1500)
    changed = np.concatenate([samples[:900], 5 * recording(600, 1)])
    first, second = (np.concatenate(in_blocks(stream, x, [100] * 15), axis=1) for x in (samples, changed))
    same = (900 - WINDOWS[2]) // HOP * HOP + HOP  # up to the first frame whose long window sees a change
    np.testing.assert_array_equal(first[:, :same], second[:, :same])
    assert np.abs(first[:, same : same + WINDOWS[0]] - second[:, same : same + WINDOWS[0]]).max() > 0
    # And the state of a recording does not outlive it.
    np.testing.assert_array_equal(np.concatenate(in_blocks(stream, samples, [100] * 15), axis=1), first)
    assert stream.flush().shape == (1, 0)


def test_another_enrolment():
    model = make_model()
    stream = StreamingExtractor(model, embedding(), compile_step)
    samples = recording(600)
    stream.step(samples)
    stream.reset()
    stream.set_enrolment(embedding(1))
    outputs = np.concatenate(in_blocks(stream, samples, [600]), axis=1)
    assert_close(outputs, whole_file(model, samples, seed=1))
    assert np.abs(outputs - whole_file(model, samples)).max() > 1e-2 * np.abs(outputs).max()


@pytest.mark.parametrize(
    "settings, said", [(dict(causal=False), "a convolution"), (dict(norm="global"), "global norm")]
)
def test_what_looks_ahead_does_not_stream(settings, said):
    with pytest.raises(ValueError, match=said):
        StreamingExtractor(make_model(**settings), embedding())


def test_a_long_recording_loses_nothing():
    """Sums over many frames and a level that changes."""
    model = make_model()
    samples = 0.01 + recording(60_000, 2)
    outputs = np.concatenate(in_blocks(StreamingExtractor(model, embedding(), compile_step), samples, [60_000]), axis=1)
    assert_close(outputs, whole_file(model, samples))


# nn/live.py ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A causal checkpoint, one that is not, a mixture and two enrolments."""
    folder = tmp_path_factory.mktemp("live_extraction")
    for run, settings in (("causal", {}), ("whole", dict(causal=False, norm="global"))):
        model, prefix = make_model(**settings), str(folder / run / "x_model.ckpt_step_1")
        checkpoint.save(prefix, model, keras.optimizers.SGD(), {})
        checkpoint.write_config(os.path.dirname(prefix), "spex_plus", model, sample_rate=speech.RATE)
        checkpoint.mark_best(prefix)
    for name, talker, rate in (("mixture", 0, speech.RATE), ("voice", 1, 2 * speech.RATE), ("voice_2", 1, speech.RATE)):
        soundfile.write(folder / f"{name}.wav", speech.voice(talker, 1, 1.0, rate), rate, subtype="FLOAT")
    return folder


def live(folder, runner=speech.succeed, enrolments=("voice.wav", "voice_2.wav"), **named):
    flags = [f"--enrolment={path}" for path in enrolments]
    named = dict(resume_model="causal", input="mixture.wav", output_dir="live", subtype="FLOAT") | named
    return runner(folder, "nn/live.py", *flags, corpus_flags=False, **named)


def test_live_extracts_whom_the_enrolment_shows(folder):
    """Whatever the block, the whole mixture's estimate at the level of what was heard so far."""
    model = make_model()
    enrolments = [read_resampled(folder / name, speech.RATE) for name in ("voice.wav", "voice_2.wav")]
    voice = np.mean([model.embed(x[None])[0] for x in enrolments], axis=0)
    mixture = soundfile.read(folder / "mixture.wav")[0]
    estimate = model.extract(mixture[None].astype("float32"), voice[None])["short"][0].numpy().astype(float)
    shared, energy = np.cumsum(mixture * estimate), np.cumsum(estimate**2)
    said = live(folder, speech.run).stderr
    assert "latency 84.0 ms: long window 20.0 ms (160 samples), block 64.0 ms" in said
    assert "1.0 s, real-time factor" in said and "worst block" in said
    found, rate = soundfile.read(folder / "live/mixture_s1.wav")
    assert rate == speech.RATE
    assert_close(found, shared / np.maximum(energy, 1e-12) * estimate)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (dict(enrolments=()), "--enrolment VOICE.wav"),
        (dict(resume_model="whole"), "train with --causal --norm cumulative"),
        (dict(enrolments=["none.wav"]), "none.wav: no such file"),
        (dict(resume_model="."), "are both of spex_plus"),
    ],
)
def test_live_refuses(folder, named, said):
    assert said in live(folder, speech.refuse, **named)
