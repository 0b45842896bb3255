"""Binaural TasNet: what a person who trains it or separates with it relies on."""

import csv
import functools
import itertools
import shutil

import keras
import numpy as np
import pytest
import soundfile
import speech
import tensorflow as tf
from golden_case import Case

from feat.base.files import UserError
from feat.signals.audio import write_pcm16
from models.binaural_tasnet.network import WIRINGS, MimoTasnet
from models.layers.conv_tasnet import ConvBlock, run_blocks
from nn.checkpoints import binaural_tasnet, readers
from nn.checkpoints import ours as checkpoint
from nn.scoring import spatial_metrics
from nn.systems.binaural_tasnet.training import write_audio

RATE = speech.RATE
SIZES = dict(filters=6, bottleneck=5, units=8, dilations=3, repeats=2)


def make_model(seed=0, **settings):
    """A small model whose every weight, also those that start as 0 or 1, has a value of its own."""
    keras.utils.set_random_seed(seed)
    model = MimoTasnet(**SIZES | settings)
    random = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        weight.assign(weight + random.normal(0, 0.1, weight.shape).astype(np.float32))
    return model


def placed(talker, seed, samples, delay=3, level=0.5):
    """A talker on the left: [samples, 2], the right ear later and softer."""
    signal = speech.voice(talker, seed, samples / RATE + 0.01)
    right = np.concatenate([np.zeros(delay), level * signal])
    return np.stack([signal[:samples], right[:samples]], axis=1).astype(np.float32)


def mixture(seed, samples):
    return placed(0, seed, samples) + placed(1, seed, samples)[:, ::-1]


# The network --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [dict(wiring="parallel"), dict(wiring="independent", norm="channel"), dict(wiring="parallel", causal=True)],
)
def test_padded_batch_gives_what_its_items_give_alone(settings):
    model = make_model(**settings)
    lengths = [900, 1203, 1100]
    batch = np.full((3, 1203, 2), 0.3, np.float32)  # whatever is behind the end must not matter
    for i, samples in enumerate(lengths):
        batch[i, :samples] = mixture(i, samples)
    together = model(batch, samples=np.array(lengths, np.int32)).numpy()
    for i, samples in enumerate(lengths):
        alone = model(batch[i : i + 1, :samples]).numpy()[0]
        np.testing.assert_allclose(together[i, :, :samples], alone, atol=2e-5 * np.abs(alone).max() + 1e-7)
        assert not together[i, :, samples:].any()


@pytest.mark.parametrize("wiring, norm", list(itertools.product(WIRINGS, ["channel", "cumulative"])))
def test_causal_model_sees_nothing_behind_its_window(wiring, norm):
    model = make_model(wiring=wiring, norm=norm, causal=True)
    before = mixture(1, 2000)[None]
    after = before.copy()
    after[:, 1500:] = mixture(2, 500)[None]
    same = 1500 - model.window + 1
    outputs = [model(x).numpy() for x in (before, after)]
    np.testing.assert_allclose(outputs[0][:, :, :same], outputs[1][:, :, :same], atol=1e-5)
    assert np.abs(outputs[0] - outputs[1])[:, :, 1500:].max() > 1e-4
    assert model(before[:, :300]).shape == (1, 2, 300, 2)  # and needs no mirror image


@pytest.mark.parametrize("norm", ["global", "channel"])
@pytest.mark.parametrize(
    "padding, causal, late", [("reflect", False, False), ("zeros", False, False), ("zeros", True, True)]
)
def test_blocks_and_their_gradients_are_those_of_the_plain_sum(norm, padding, causal, late):
    """Also with slopes below 0 and above 1, two series of two blocks at once, and in the loop of a graph."""
    keras.utils.set_random_seed(3)
    options = dict(norm=norm, causal=causal, padding=padding, late=late, bias=False)
    series = [[ConvBlock(3, 5, dilation, **options) for dilation in (2, 1)] for _ in range(2)]
    blocks = [block for one in series for block in one]
    random = np.random.default_rng(0)
    for block, slopes in zip(blocks, [(-0.5, 1.7), (0.3, -0.1), (1.3, 0.2), (0.9, 1.1)]):
        block.build((None, None, 3))
        for weight in block.weights:
            weight.assign(weight + random.normal(0, 0.3, weight.shape))
        for prelu, slope in zip((block.expand_prelu, block.depthwise_prelu), slopes):
            prelu.slope.assign([slope])
    x = tf.constant(random.standard_normal((2, 2, 11, 3)).astype(np.float32))

    def prelu(y, slope):
        return tf.where(y > 0, y, slope * y)

    def plain(block, x):
        y = block.expand_norm(prelu(tf.matmul(x, block.expand.kernel), block.expand_prelu.slope))
        before, behind = (3, -1) if late else (2, 0) if causal else (1, 1)
        before, behind = before * block.dilation, max(behind * block.dilation, 0)
        y = tf.pad(y, [[0, 0], [before, behind], [0, 0]], "REFLECT" if padding == "reflect" else "CONSTANT")
        y = sum(block.kernel[tap, :, 0] * y[:, (at := tap * block.dilation) : at + 11] for tap in range(3))
        y = block.depthwise_norm(prelu(y, block.depthwise_prelu.slope))
        return x + tf.matmul(y, block.reduce.kernel)

    def plainly():
        return tf.stack([plain(last, plain(first, y)) for (first, last), y in zip(series, tf.unstack(x))])

    weights = [w.value for block in blocks for w in block.trainable_weights]
    found = []
    ours = [functools.partial(run_blocks, series, x, sparing=sparing) for sparing in (False, True)]
    graphs = [tf.function(run, autograph=False) for run in ours[: 1 + (norm == "global")]]
    for run in (plainly, ours[0], *graphs):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = run()
            loss = tf.reduce_sum(tf.sin(y))
        found.append([y, *tape.gradient(loss, [x, *weights])])
    for expected, *others in zip(*found):
        for ours in others:
            np.testing.assert_allclose(ours, expected, atol=2e-5 * max(1.0, float(tf.reduce_max(tf.abs(expected)))))


def test_projection_of_cross_is_the_same_in_every_call_unless_asked_otherwise():
    heard = mixture(0, 900)[None]
    for projection, trained in (("trained", 2), ("fixed", 0)):
        model = make_model(wiring="cross", projection=projection, features=("ild", "ipd"))
        np.testing.assert_array_equal(model(heard), model(heard))
        assert sum("projection" in v.path for v in model.trainable_variables) == trained
    model = make_model(wiring="cross", projection="random")
    assert np.abs(model(heard) - model(heard)).max() > 1e-5


def test_any_number_of_talkers_and_inputs_that_cannot_be_used():
    model = make_model(talkers=3, mask="softmax")
    again = MimoTasnet.from_config(model.get_config())
    again.set_weights(model.get_weights())
    heard = mixture(0, 777)[None]
    assert model(heard).shape == (1, 3, 777, 2)
    np.testing.assert_array_equal(model(heard), again(heard))
    with pytest.raises(ValueError, match="100 samples, 1040 are needed"):
        make_model(dilations=8, repeats=1)(heard[:, :100])
    with pytest.raises(ValueError, match="1 channels; two are needed"):
        model(heard[..., :1])


def test_fourier_start_gives_the_mixture_back_where_masks_are_one():
    settings = dict(wiring="independent", mask="sigmoid", window=32, filters=64)
    model = make_model(**settings)
    model.start_as_fourier()
    for separator in model.separators:
        separator.mask_conv.kernel.assign(0 * separator.mask_conv.kernel)
    heard = mixture(0, 2000)[None]
    np.testing.assert_allclose(model(heard)[0, :, 32:1900], np.stack(2 * [0.5 * heard[0, 32:1900]]), atol=1e-5)


# Scores -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay_us", [-430.0, 0.0, 61.0, 700.0])
def test_time_and_level_differences_between_samples(delay_us):
    """Positive times and negative levels are those of talkers on the right."""
    noise = np.random.default_rng(0).standard_normal(4096)
    frequencies = np.fft.rfftfreq(len(noise), 1 / RATE)
    late = np.fft.irfft(np.fft.rfft(noise) * np.exp(-2j * np.pi * frequencies * delay_us * 1e-6) * 0.5)
    ears = np.stack([late, noise], axis=1)
    np.testing.assert_allclose(spatial_metrics.time_difference(ears, RATE), delay_us, atol=3)
    np.testing.assert_allclose(spatial_metrics.level_difference(ears), -6.02, atol=0.01)
    whole = spatial_metrics.reference_time_difference(ears, RATE)
    assert abs(whole - delay_us) <= 63 and whole % 125 == 0


def test_scores_follow_the_order_of_the_snr():
    references = np.stack([placed(0, 1, 4000), placed(1, 1, 4000)[:, ::-1], placed(2, 1, 4000, delay=0, level=1.0)])
    found = spatial_metrics.score(0.9 * references[[2, 0, 1]], references, references.sum(axis=0), RATE)
    assert found["output"].tolist() == [2, 3, 1]
    np.testing.assert_allclose([found["snr"], found["delta_ITD"], found["delta_ILD"]], [20, 0, 0], atol=1e-3)
    assert found["snr_i"] > 20 and found["delta_ITD_reference"] > 100
    assert found["itd"][0] < -200 and found["itd"][1] > 200 and found["ild"][0] > 5
    silent = references.copy()
    silent[0, :, 1] = 0
    assert np.isnan(spatial_metrics.score(silent, references, references.sum(axis=0), RATE)["delta_ILD"])


def test_saved_sound_keeps_what_is_between_the_ears(tmp_path):
    loud = 3 * placed(0, 1, 2000)
    write_audio(str(tmp_path), "a", 2 * loud, [loud, loud], [loud, loud[:, ::-1]], RATE)
    found = soundfile.read(tmp_path / "itema_source1hat.wav")[0]
    assert len(list(tmp_path.iterdir())) == 5
    ours, expected = (spatial_metrics.level_difference(x) for x in (found, loud))
    np.testing.assert_allclose(ours, expected, atol=0.01)


# SpeechBrain --------------------------------------------------------------------------------------


def test_folder_of_speechbrain(tmp_path):
    """The best of the checkpoints in a folder is taken, and its projection, which it lacks, drawn from a fixed seed."""
    torch = pytest.importorskip("torch")
    case = Case(speech.ROOT / "tests/golden/binaural/cross_small.npz")
    weights = {name: x for name, x in case.weights().items() if not name.startswith("crossconv")}
    for name, loss, factor in (("CKPT+a+00", -3.5, 1.0), ("CKPT+b+00", -1.25, 2.0)):
        folder = tmp_path / name
        folder.mkdir()
        for part in binaural_tasnet.PARTS:
            own = {k.split(".", 1)[1]: torch.tensor(factor * x) for k, x in weights.items() if k.startswith(part)}
            torch.save(own, folder / f"{part}.ckpt")
        (folder / "CKPT.yaml").write_text(f"end-of-epoch: true\nsnr: {loss}\nunixtime: 1.0\n")
    reader = readers.open_reader(str(tmp_path))
    settings = reader.settings() | {"wiring": "cross"}
    models = [MimoTasnet(**settings) for _ in range(2)]
    for model in models:
        readers.load_for_inference(str(tmp_path), "mimo_tasnet", model)
    heard = case["in/mix"]
    np.testing.assert_array_equal(models[0](heard), models[1](heard))
    np.testing.assert_array_equal(reader("encoderL.conv1d.weight").T, weights["encoderL.conv1d.weight"])
    (tmp_path / "CKPT+a+00/encoderL.ckpt").write_bytes(b"PK\x03\x04 and more")
    with pytest.raises(UserError, match="download it again"):
        readers.open_reader(str(tmp_path / "CKPT+a+00"))


# The script ---------------------------------------------------------------------------------------

FLAGS = dict(
    n_filters=6, n_bottle=5, n_units=8, n_blocks=2, n_repeats=1, batch_size=2, segment_seconds=0.3, epoch=1, pictures=1,
    save_steps=1, corpus_flags=False,
)  # fmt: skip
LAST = 3  # the step that would come after the last


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sets of stereo wavs, and a trained network."""
    folder = tmp_path_factory.mktemp("binaural")
    for set_name, count in dict(tr=4, cv=2, tt=2).items():
        for i in range(count):
            samples = 2400 + 160 * i
            sources = [placed(i % 3, i, samples), placed((i + 1) % 3, 50 + i, samples)[:, ::-1]]
            for kind, signal in dict(mix=sum(sources), s1=sources[0], s2=sources[1]).items():
                write_pcm16(folder / "binaural" / set_name / kind / f"m{i}.wav", 0.5 * signal, RATE)
    speech.succeed(folder, "nn/binaural_tasnet.py", time_stamp="whole", **FLAGS)
    return folder


def prefix(folder, stamp, step):
    return folder / f"exp/binaural_tasnet/models/{stamp}/binaural_tasnet_model.ckpt_step_{step}"


def test_training_draws_cues(folder):
    assert list((folder / "exp/binaural_tasnet/models/whole/pictures").glob("*.png"))
    arrays = speech.checkpoint_arrays(prefix(folder, "whole", LAST))
    assert all(np.isfinite(x).all() for x in arrays.values() if getattr(x, "dtype", None) == np.float32)


def test_two_devices_train_and_validate_as_one(folder):
    """Mixtures are of different lengths, so that each device gets padding that one alone would not see."""
    runs = {}
    for stamp, devices in (("one", 0), ("two", 2)):
        named = dict(num_virtual_devices=devices, segment_seconds=0, speed_perturb=False, optimizer="momentum")
        # Collectives of two strategies of one process are taken for each other: only the first would be sure to work.
        runner = speech.run if devices else speech.run_here
        run = FLAGS | named | dict(time_stamp=stamp, pictures=0)
        speech.succeed(folder, "nn/binaural_tasnet.py", runner=runner, **run)
        state = checkpoint.read_loop_state(readers.open_reader(str(prefix(folder, stamp, LAST))))["state"]
        runs[stamp] = speech.checkpoint_arrays(prefix(folder, stamp, LAST)), state["score"]
    (ours, our_score), (theirs, their_score) = runs.values()
    assert our_score == pytest.approx(their_score, abs=1e-4)
    for name, value in ours.items():
        if getattr(value, "dtype", None) == np.float32:
            np.testing.assert_allclose(value, theirs[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_network_stays_the_one_that_was_trained(folder):
    """--parity changes what a causal network computes, --norm and --causal too, and weights do not tell."""
    run = FLAGS | dict(time_stamp="late", exp_name="late", pictures=0)
    speech.succeed(folder, "nn/binaural_tasnet.py", "--causal", "--parity", **run)
    found = []
    for parity in (False, True):
        speech.succeed(folder, "nn/binaural_tasnet.py", is_deploy=1, parity=parity, **run)
        with open(folder / "exp/late/output_tt/test_results.csv", encoding="utf-8") as file:
            found.append([row["snr"] for row in csv.DictReader(file)])
    assert found[0] == found[1]
    line = speech.refuse(folder, "nn/binaural_tasnet.py", "--parity", **run | dict(epoch=2))
    assert "exp/late/models/late: its network was trained with norm channel, but the flags say global" in line


def test_one_recording_at_once_is_what_its_blocks_are(folder):
    run = FLAGS | dict(time_stamp="causal", exp_name="causal", pictures=0)
    speech.succeed(folder, "nn/binaural_tasnet.py", "--causal", **run)
    write_pcm16(folder / "ears.wav", 0.3 * mixture(5, 3013), RATE)
    whole = dict(is_deploy=1, mixture="ears.wav", output_folder="whole")
    speech.succeed(folder, "nn/binaural_tasnet.py", **run | whole)
    blocks = dict(resume_model="exp/causal/models", output_dir="blocks", corpus_flags=False)
    assert "causal: latency 2.0 ms" in speech.succeed(folder, "nn/separate.py", "ears.wav", **blocks)
    for name in ("ears_s1.wav", "ears_s2.wav"):
        ours, theirs = (soundfile.read(folder / path / name)[0] for path in ("whole", "blocks"))
        np.testing.assert_allclose(ours, theirs, atol=3 / 32768)


def test_a_source_whose_ears_are_exchanged(folder):
    shutil.copytree(folder / "binaural", folder / "exchanged")
    path = folder / "exchanged/tr/s2/m1.wav"
    samples, rate = soundfile.read(path)
    soundfile.write(path, samples[:, ::-1], rate)
    line = speech.refuse(
        folder, "nn/binaural_tasnet.py", **FLAGS | dict(data_folder="exchanged", time_stamp="exchanged")
    )
    assert "exchanged/tr/s2/m1.wav: left and right are exchanged" in line


def test_a_mixture_that_gets_too_short_at_the_fastest_speed(folder):
    for path in ("short/cv", "short/tr"):
        for kind in ("mix", "s1", "s2"):
            write_pcm16(folder / path / kind / "m0.wav", 0.5 * placed(0, 3, 1045), RATE)
    named = FLAGS | dict(time_stamp="short", data_folder="short", n_blocks=8, batch_size=1, segment_seconds=0)
    line = speech.refuse(folder, "nn/binaural_tasnet.py", **named)
    assert "m0.wav: 1045 samples, the network needs 1040 at 105 % of the speed" in line


def test_dynamic_mixing_without_a_corpus_is_refused(folder):
    line = speech.refuse(folder, "nn/binaural_tasnet.py", "--dynamic_mixing", **FLAGS | dict(time_stamp="none"))
    assert "--dynamic_mixing needs --corpus_folder" in line


def test_scores_of_a_set(folder):
    source = prefix(folder, "whole", LAST)
    printed = speech.succeed(folder, "nn/binaural_tasnet.py", is_deploy=1, resume_model=source, **FLAGS)
    assert "Delta ITD (us)" in printed
    output = folder / "exp/binaural_tasnet/output_tt"
    rows = list(csv.DictReader(open(output / "test_results.csv", encoding="utf-8")))
    assert [row["snt_id"] for row in rows] == ["m0", "m1", "avg"]
    mean = np.mean([float(row["snr"]) for row in rows[:2]])
    np.testing.assert_allclose(float(rows[2]["snr"]), mean)
    # Two talkers without noise: the mixture's own score is 0 but for rounding to 16 bits.
    np.testing.assert_allclose(float(rows[0]["snr_i"]), float(rows[0]["snr"]), atol=0.05)
    assert len(list((output / "audio_results").glob("*.wav"))) == 10
    assert soundfile.info(output / "audio_results/itemm1_source2hat.wav").channels == 2


def test_scoring_goes_on_where_it_ended(folder):
    flags = FLAGS | dict(is_deploy=1, time_stamp="whole")
    output = folder / "exp/binaural_tasnet/output_tt"
    whole = speech.succeed(folder, "nn/binaural_tasnet.py", **flags)
    rows = (output / "test_results.csv").read_text()
    stumble = output / "audio_results/itemm1_mix.wav"
    speech.refuse_once(folder, stumble, "nn/binaural_tasnet.py", **flags)
    printed = speech.succeed(folder, "nn/binaural_tasnet.py", **flags)
    assert "going on, 1 mixtures are done" in printed and printed.endswith(whole)
    assert (output / "test_results.csv").read_text() == rows


def test_one_recording_of_another_rate(folder):
    source = prefix(folder, "whole", LAST)
    options = dict(is_deploy=1, resume_model=source, output_folder="out", corpus_flags=False)
    random = np.random.default_rng(0)
    soundfile.write(folder / "scene.wav", random.uniform(-0.1, 0.1, (6000, 2)), 16000)
    soundfile.write(folder / "mono.wav", random.uniform(-0.1, 0.1, 6000), 16000)
    soundfile.write(folder / "short.wav", random.uniform(-0.1, 0.1, (50, 2)), 16000)
    speech.succeed(folder, "nn/binaural_tasnet.py", mixture="scene.wav", **options)
    samples, rate = soundfile.read(folder / "out/scene_s2.wav")
    assert samples.shape == (6000, 2) and rate == 16000
    line = speech.refuse(folder, "nn/binaural_tasnet.py", mixture="mono.wav", **options)
    assert "mono.wav: 1 channel, the two" in line
    line = speech.refuse(folder, "nn/binaural_tasnet.py", mixture="short.wav", **options)
    assert "short.wav: 25 samples at 8000 Hz, 32 are needed" in line
    line = speech.refuse(folder, "nn/binaural_tasnet.py", mixture="scene.wav", **options | dict(n_filters=7))
    assert "trained with --n_filters 6, but --n_filters 7 was given" in line
