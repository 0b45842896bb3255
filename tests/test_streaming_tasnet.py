"""SpEx+ block by block: equal to the whole file, with no more of the future than its longest window."""

import os

import keras
import numpy as np
import pytest
import soundfile
import speech
from test_streaming import assert_close, in_blocks, random_sizes, recording

from feat.signals.audio import read_resampled
from models.spex_plus.network import VARIANTS, SpexPlus
from models.spex_plus.streaming import StreamingExtractor
from nn.checkpoints import ours as checkpoint
from nn.recordings.streams import compile_step
from nn.systems.separator import Separator
from nn.systems.spex_plus.recordings import Extractor, RunningGain

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


# The level of training -----------------------------------------------------------------------------


LEVELS_DB = {"mixture": -15.0, "enrolment": -20.0}


def level_stream(model):
    return StreamingExtractor(model, embedding(), compile_step, RunningGain(Extractor(model, LEVELS_DB)))


def even(samples):
    """A mixture as loud in every frame of 10 ms, so that what was heard so far has the level of the whole."""
    return np.resize(0.02 * recording(WINDOWS[1], 3), samples)


@pytest.mark.parametrize("samples", [1, 30, 79, 80, 161, 1999])
def test_at_the_level_of_training_too_blocks_give_what_the_whole_file_gives(samples):
    model = make_model()
    expected = Extractor(model, LEVELS_DB).estimate(even(samples), embedding())[None]
    stream = level_stream(model)
    for sizes in ([samples], random_sizes(samples, 100, 0)):
        assert_close(np.concatenate(in_blocks(stream, even(samples), sizes), axis=1), expected)


def test_blocks_do_not_matter_where_the_level_changes():
    samples = recording(4003) * np.repeat([0.01, 1.0, 0.1, 0.001], 1001)[:4003]
    stream = level_stream(make_model())
    expected = np.concatenate(in_blocks(stream, samples, [4003]), axis=1)
    for sizes in (random_sizes(4003, 900, 0), random_sizes(4003, 40, 1), [7] * 571 + [6]):
        found = np.concatenate(in_blocks(stream, samples, sizes), axis=1)
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_silence_in_front_gives_silence():
    """And not what the biases make of it, beside which a soft talker would count little."""
    model = make_model()
    found = np.concatenate(in_blocks(level_stream(model), np.append(np.zeros(1600), even(1600)), [3200]), axis=1)
    assert np.abs(found[:, :1400]).max() == 0
    assert np.abs(found[:, 1600:]).max() > 0
    assert np.isfinite(found).all()
    assert not np.concatenate(in_blocks(level_stream(model), np.zeros(50), [50]), axis=1).any()


def test_the_gain_is_taken_out_of_the_estimate():
    """Without biases in front of the first norm and behind the mask, the level matters nowhere."""
    model = make_model()
    for _, bias in [*model.encoders, *model.decoders]:
        bias.assign(np.zeros(bias.shape))
    samples = recording(4000) * np.repeat([100, 1000.0, 300, 100], 1000)
    stream = StreamingExtractor(model, embedding(), compile_step, RunningGain(Extractor(model, {"mixture": 70.0})))
    found = np.concatenate(in_blocks(stream, samples, random_sizes(4000, 300, 0)), axis=1)
    assert_close(found, whole_file(model, samples))


# nn/live.py ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A causal checkpoint, one that tells its levels too, one that is not causal, a mixture and two enrolments."""
    folder = tmp_path_factory.mktemp("live_extraction")
    whole = dict(causal=False, norm="global")
    for run, settings, more in (("causal", {}, {}), ("levels", {}, {"levels_db": LEVELS_DB}), ("whole", whole, {})):
        model, prefix = make_model(**settings), str(folder / run / "x_model.ckpt_step_1")
        checkpoint.save(prefix, model, keras.optimizers.SGD(), {})
        checkpoint.write_config(os.path.dirname(prefix), "spex_plus", model, sample_rate=speech.RATE, **more)
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
    said = live(folder, speech.run).stderr
    assert "latency 84.0 ms: long window 20.0 ms (160 samples), block 64.0 ms" in said
    assert "1.0 s, real-time factor" in said and "worst block" in said
    found, rate = soundfile.read(folder / "live/mixture_s1.wav")
    assert rate == speech.RATE
    assert_close(found, heard_so_far(estimate, mixture))


def heard_so_far(estimate, mixture):
    """An estimate scaled at every sample to the share that it has in the mixture up to there."""
    return np.cumsum(mixture * estimate) / np.maximum(np.cumsum(estimate**2), 1e-30) * estimate


def test_live_at_the_level_of_training(folder):
    """Neither the block nor the level of the recording matters, and nn/separate.py's network gives the same."""
    mixture = soundfile.read(folder / "mixture.wav")[0] * np.linspace(0.01, 1, speech.RATE)
    soundfile.write(folder / "rising.wav", mixture, speech.RATE, subtype="FLOAT")
    soundfile.write(folder / "soft.wav", 0.01 * mixture, speech.RATE, subtype="FLOAT")
    soundfile.write(folder / "even.wav", even(speech.RATE), speech.RATE, subtype="FLOAT")

    def found(name, block_seconds):
        live(folder, resume_model="levels", input=f"{name}.wav", block_seconds=block_seconds)
        return soundfile.read(folder / f"live/{name}_s1.wav")[0]

    expected = found("rising", 1.0)
    for other in (found("rising", 0.02), found("rising", 0.0137), 100 * found("soft", 0.064)):
        np.testing.assert_allclose(other, expected, atol=1e-5 * np.abs(expected).max())
    separator = Separator(str(folder / "levels"), level="none")
    voices = [folder / name for name in ("voice.wav", "voice_2.wav")]
    (talker,) = separator(even(speech.RATE), speech.RATE, enrolment=voices)
    assert_close(found("even", 0.05), heard_so_far(talker.astype(float), even(speech.RATE)))


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
