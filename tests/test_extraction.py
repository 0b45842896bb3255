"""nn/separate.py with SpEx+, by a network that was never trained: recordings and enrolments as people have them."""

import json
import os

import keras
import numpy as np
import pytest
import soundfile
import speech
import tensorflow as tf
from golden_case import Case

from feat.base.files import UserError
from models.spex_plus.network import VARIANTS, SpexPlus
from nn.checkpoints import ours as checkpoint
from nn.systems.separator import Separator
from nn.systems.spex_plus.recordings import Extractor

RATE = speech.RATE
SIZES = dict(filters=8, bottleneck=6, units=10, embedding_dim=5, speaker_units=7, dilations=2, repeats=2, classes=3)
PREFIX = "exp/spex_plus/models/run/spex_plus_model.ckpt_step_1"
CAUSAL = "exp/causal/models/run/spex_plus_model.ckpt_step_1"
WINDOWS = dict(window_seconds=0.6, overlap_seconds=0.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, marked best, whose norms see no more than a frame; a mixture and enrolments."""
    folder = tmp_path_factory.mktemp("extraction")
    keras.utils.set_random_seed(0)
    model = SpexPlus(**VARIANTS["authors"] | SIZES | dict(norm="channel"))
    model(dict(mixture=tf.zeros((1, 400)), enrolment=tf.zeros((1, 800))))
    checkpoint.save(str(folder / PREFIX), model, keras.optimizers.SGD(), {})
    checkpoint.write_config(str((folder / PREFIX).parent), "spex_plus", model, sample_rate=RATE)
    checkpoint.mark_best(str(folder / PREFIX))
    model = SpexPlus(**VARIANTS["authors"] | SIZES | dict(norm="cumulative", causal=True))
    model(dict(mixture=tf.zeros((1, 400)), enrolment=tf.zeros((1, 800))))
    checkpoint.save(str(folder / CAUSAL), model, keras.optimizers.SGD(), {})
    levels_db = {"mixture": -25.0, "enrolment": -25.0}
    checkpoint.write_config(str((folder / CAUSAL).parent), "spex_plus", model, sample_rate=RATE, levels_db=levels_db)
    soundfile.write(folder / "mixture.wav", mixture(), RATE, subtype="FLOAT")
    soundfile.write(folder / "voice.wav", voice(1), RATE, subtype="FLOAT")
    soundfile.write(folder / "stereo.flac", np.stack(2 * [speech.voice(0, 2, 0.8, 22050)], axis=1), 22050)
    soundfile.write(folder / "short.wav", voice(1)[:3000], RATE)
    soundfile.write(folder / "silent.wav", np.zeros(8000), RATE)
    return folder


@pytest.fixture
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def mixture(seconds=1.8):  # four windows, each with a part that no other has
    return speech.voice(0, 3, seconds) + speech.voice(1, 3, seconds)


def voice(seed):
    return speech.voice(0, seed, 0.7)


def separate(folder, *arguments, runner=speech.succeed, **named):
    named = {"resume_model": "exp/spex_plus/models", "output_dir": "out"} | named
    return runner(folder, "nn/separate.py", *arguments, corpus_flags=False, **named)


def test_the_script_gives_what_the_network_gives(inside):
    separator = Separator(PREFIX)
    extractor = Extractor(separator.system.extractor.model)
    embedding = (extractor.embed(voice(1)) + extractor.embed_files(["stereo.flac"], RATE)) / 2
    expected = extractor(mixture(), embedding)
    np.testing.assert_allclose(
        separator(mixture(), RATE, enrolment=["voice.wav", "stereo.flac"]), expected[None], atol=1e-6
    )
    flags = ["--enrolment=voice.wav", "--enrolment=stereo.flac", "--subtype=FLOAT"]
    printed = separate(inside, "mixture.wav", *flags)
    np.testing.assert_allclose(soundfile.read("out/mixture_s1.wav")[0], expected, atol=1e-6)
    assert f"confidence that the talker is there {separator.confidence:.3f}" in printed
    assert "separated already" in separate(inside, "mixture.wav", *flags)
    assert "separated already" not in separate(inside, "mixture.wav", *flags[1:])


def test_another_voice_is_another_output(inside):
    """Whatever was extracted by it in between."""
    soundfile.write("other.wav", mixture(0.6), RATE)
    flags = dict(output_dir="voices", subtype="FLOAT")
    separate(inside, "other.wav", "--enrolment=stereo.flac", **flags)
    first = soundfile.read("voices/other_s1.wav")[0]
    separate(inside, "mixture.wav", "--enrolment=voice.wav", **flags)
    assert "separated already" not in separate(inside, "other.wav", "--enrolment=voice.wav", **flags)
    assert not np.array_equal(soundfile.read("voices/other_s1.wav")[0], first)


def test_silence_of_a_long_enrolment_is_no_voice(inside):
    separator = Separator(PREFIX)
    extractor = separator.system.extractor
    spoken = voice(1)
    alone = separator.enrol(spoken, RATE)
    np.testing.assert_array_equal(alone, extractor.embed(spoken))  # one piece
    silence = np.zeros(40 * RATE + len(spoken), np.float32)
    soft = 1e-5 * np.random.default_rng(0).standard_normal(len(silence)).astype(np.float32)
    for around in (silence, soft):
        long = np.append(around, spoken)
        last = np.array_split(long, 3)[-1]
        np.testing.assert_allclose(separator.enrol(long, RATE), extractor.embed(last), rtol=1e-5)
    # Pieces with voice count by how much of it they have.
    busy, rare = np.tile(spoken, 28)[: 15 * RATE], np.append(spoken, np.zeros(15 * RATE - len(spoken), np.float32))
    both = separator.enrol(np.append(busy, rare), RATE)
    share = loud_share(busy) / (loud_share(busy) + loud_share(rare))
    assert share > 0.9
    expected = share * extractor.embed(busy) + (1 - share) * extractor.embed(rare)
    np.testing.assert_allclose(both, expected, rtol=1e-4, atol=1e-6)
    # And the reference implementations embed all of it at once.
    whole = Extractor(extractor.model, parity=True).embed_speech(np.append(busy, rare), RATE)
    np.testing.assert_allclose(whole, extractor.embed(np.append(busy, rare)), rtol=1e-6)


def loud_share(signal):
    """Of the 10 ms that are less than 20 dB below the loudest."""
    powers = np.mean(np.square(signal[: len(signal) // 80 * 80].reshape(-1, 80)), axis=1)
    return np.mean(powers >= powers.max() / 100)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.append(voice(1), np.float32(np.nan)), "NaN or infinite"),
        (np.append(voice(1), np.float32(np.inf)), "NaN or infinite"),
        (np.stack(2 * [voice(1)], axis=1), r"shape \(5600, 2\); one channel, \[samples\], is needed"),
        ([speech.voice(0, 1, 1.4), np.stack(2 * [voice(1)])], r"shape \(2, 5600\); one channel"),
        ([0.1, 0.2], r"shape \(\); one channel"),
        (np.zeros(0), "0.00 s of the wanted talker"),
    ],
)
@pytest.mark.parametrize("rate", [RATE, 2 * RATE])
def test_waveforms_that_enrol_nobody(inside, given, said, rate):
    separator = Separator(PREFIX)
    with pytest.raises(UserError, match=said):
        separator.enrol(given, rate)
    with pytest.raises(UserError, match=said):
        separator(mixture(), rate, enrolment=given)


def test_another_rate_and_waveforms_as_enrolments(inside):
    samples = np.stack([speech.voice(i, 0, 1.3, 16000) for i in range(2)], axis=1)
    soundfile.write("rate.flac", samples, 16000)
    separate(inside, "rate.flac", "--enrolment=voice.wav", channels="each", level="peak")
    assert {name for name in os.listdir("out") if name.startswith("rate")} == {"rate_ch1_s1.wav", "rate_ch2_s1.wav"}
    (talker,) = Separator(PREFIX, level="peak")(samples[:, 1], 16000, enrolment="voice.wav")
    np.testing.assert_allclose(soundfile.read("out/rate_ch2_s1.wav")[0], talker, atol=1e-3)
    assert len(talker) == len(samples)
    separator = Separator(PREFIX)
    one, several = (separator.enrol(given, RATE) for given in (voice(1), [voice(1), voice(1)]))
    np.testing.assert_allclose(one, several, rtol=1e-5)


def test_the_level_of_recordings_does_not_matter(inside):
    config = os.path.join(os.path.dirname(PREFIX), "config.json")
    with open(config, encoding="utf-8") as file:
        before = file.read()
    try:
        with open(config, "w", encoding="utf-8") as file:
            json.dump(json.loads(before) | {"levels_db": {"mixture": -20.0, "enrolment": -25.0}}, file)
        separator = Separator(PREFIX, **WINDOWS)
    finally:
        with open(config, "w", encoding="utf-8") as file:
            file.write(before)
    talker = separator(mixture(), RATE, voice(1))
    confidence = separator.confidence
    np.testing.assert_allclose(separator(0.01 * mixture(), RATE, 0.1 * voice(1)), 0.01 * talker, atol=1e-6)
    assert separator.confidence == pytest.approx(confidence, abs=1e-4)
    # The same signals at the levels of training go through as they are.
    extractor = separator.system.extractor
    levels = {kind: loud_level(x) for kind, x in (("mixture", mixture()), ("enrolment", voice(1)))}
    scaled = {kind: 10 ** ((extractor.levels_db[kind] - level) / 20) for kind, level in levels.items()}
    plain = Separator(PREFIX, **WINDOWS)(scaled["mixture"] * mixture(), RATE, scaled["enrolment"] * voice(1))
    np.testing.assert_allclose(talker, plain / scaled["mixture"], atol=1e-5)


def loud_level(signal):
    """dB of the 10 ms that are less than 20 dB below the loudest."""
    powers = np.array([np.mean(part**2) for part in np.split(signal, range(80, len(signal), 80)) if len(part) == 80])
    return 10 * np.log10(np.mean(powers[powers > powers.max() / 100]))


def test_windows_give_what_the_whole_gives(inside):
    """Where nothing looks further than the overlap, that is so, and the level is one for all windows."""
    whole, cut = (Separator(PREFIX, **options)(mixture(), RATE, voice(1)) for options in ({}, WINDOWS))
    assert whole.shape == cut.shape
    assert np.sum((whole - cut) ** 2) < 1e-3 * np.sum(whole**2)


def test_silence_where_the_talker_is_absent(inside):
    plain = Separator(PREFIX, level="none", **WINDOWS)
    estimate = plain(mixture(), RATE, voice(1))
    assert "--absent" in separate(inside, "mixture.wav", "--enrolment=voice.wav", reject="file", runner=speech.refuse)
    found = []
    for start in plain.windows.starts(plain.system.frames(len(mixture()))):
        extractor, first = plain.system.extractor, start * plain.system.hop_size
        part = mixture()[first : first + plain.windows.length * plain.system.hop_size]
        embedding = extractor.embed(voice(1))
        found.append(extractor.confidence(part, extractor.estimate(part, embedding), embedding))
    assert plain.confidence == pytest.approx(max(found), abs=1e-6)
    between = float(np.mean(sorted(found)[-2:]))  # one window alone is above it
    options = dict(level="none", threshold=between) | WINDOWS
    np.testing.assert_allclose(Separator(PREFIX, reject="file", **options)(mixture(), RATE, voice(1)), estimate)
    some = Separator(PREFIX, reject="window", **options)(mixture(), RATE, voice(1))
    heard = plain.windows.starts(plain.system.frames(len(mixture())))[int(np.argmax(found))] * plain.system.hop_size
    inner = slice(heard + 1700, heard + 3000)  # of the window, where no other overlaps
    np.testing.assert_allclose(some[:, inner], estimate[:, inner], atol=1e-6)
    assert 0.2 < np.mean(some == 0) < 0.9
    with open(PREFIX + ".threshold.json", "w", encoding="utf-8") as file:
        json.dump({"threshold": 1.0, "set": "cv"}, file)
    said = separate(inside, "mixture.wav", "--enrolment=voice.wav", reject="file", output_dir="rejected")
    os.remove(PREFIX + ".threshold.json")
    assert "below 1.000: most likely not; silence" in said
    assert not soundfile.read("rejected/mixture_s1.wav")[0].any()


# Online -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["projection", "none"])
def test_online_is_what_live_gives(inside, level):
    """Where the level rises; of one recording after the other, of their windows or in blocks of any length."""
    rising = {"rising": mixture() * np.linspace(0.01, 0.5, len(mixture())), "second": 0.3 * mixture(0.7)}
    for name, samples in rising.items():
        soundfile.write(f"{name}.wav", np.stack([samples, 0.5 * samples], axis=1), RATE, subtype="FLOAT")
    flags = dict(resume_model=CAUSAL, level=level, subtype="FLOAT")
    wavs = [f"{name}.wav" for name in rising]
    printed = separate(inside, *wavs, "--enrolment=voice.wav", grouping="online", output_dir="online", **flags)
    assert "latency 20.0 ms" in printed and "confidence" not in printed
    separator = Separator(CAUSAL, grouping="online", level=level, **WINDOWS)
    separator(mixture(), RATE, "stereo.flac")  # another voice
    for name in rising:
        speech.succeed(
            inside,
            "nn/live.py",
            "--enrolment=voice.wav",
            corpus_flags=False,
            input=f"{name}.wav",
            output_dir="live",
            **flags,
        )
        expected = soundfile.read(f"live/{name}_s1.wav")[0]
        assert np.abs(expected).max() > 0
        found = [
            soundfile.read(f"online/{name}_s1.wav")[0],
            separator(soundfile.read(f"{name}.wav")[0].mean(axis=1), RATE, "voice.wav")[0],
        ]
        for ours in found:
            np.testing.assert_allclose(ours, expected, atol=min(1e-5 * np.abs(expected).max(), 2**-16))
    # Unless it is asked for, the levels are those of the whole recording.
    (windows,) = Separator(CAUSAL, level=level)(soundfile.read("second.wav")[0].mean(axis=1), RATE, "voice.wav")
    assert np.abs(windows - expected).max() > 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (dict(level="peak"), "--level peak: a stream does not know the peak of what is still to come"),
        (dict(reject="file", threshold=0.1), "--reject file: the confidence is that of windows"),
        (dict(resume_model=PREFIX), f"{PREFIX}: not causal, it looks at what is still to come; train with --causal"),
    ],
)
def test_online_refuses(inside, named, said):
    named = dict(resume_model=CAUSAL, grouping="online") | named
    assert said in separate(inside, "mixture.wav", "--enrolment=voice.wav", runner=speech.refuse, **named)


# PyTorch ------------------------------------------------------------------------------------------

AUTHORS = ("L", "N", "X", "R", "B", "H", "P", "norm", "num_spks", "non_linear", "causal")


@pytest.fixture
def torch_file(tmp_path):
    """Writes a golden case of an implementation in PyTorch as its checkpoint, in a folder of its own."""
    torch = pytest.importorskip("torch")

    def write(name):
        case = Case(speech.ROOT / f"tests/golden/spex_plus/{name}.npz")
        weights = {key: torch.tensor(value) for key, value in case.weights().items()}
        torch.save({"model_state_dict": weights, "epoch": 3}, tmp_path / "best.pt.tar")
        return str(tmp_path / "best.pt.tar"), case

    return write


def arguments(case, **changed):
    """What gemengtju/SpEx_Plus writes into mdl.json."""
    return json.dumps({key: case.config[key] for key in AUTHORS if key in case.config} | changed)


def test_mdl_json_beside_a_torch_checkpoint_tells_mask_and_causal(torch_file, tmp_path, capsys):
    path, case = torch_file("authors_small_cln_causal_sigmoid")
    Separator(path)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{path}: does not tell its mask" in said and "put the mdl.json" in said
    (tmp_path / "mdl.json").write_text(arguments(case))
    extractor = Separator(path).system.extractor
    assert not capsys.readouterr().err
    row = int(np.argmax(case["in/aux_len"]))  # that nothing was added to
    estimate = extractor(case["in/mix"][row], extractor.embed(case["in/aux"][row]), level="none")
    theirs = case["out/short"][row]
    case.check("short", estimate[: len(theirs)], theirs)


def test_their_softmax_is_over_the_batch(torch_file, tmp_path):
    path, case = torch_file("authors_small_softmax")
    (tmp_path / "mdl.json").write_text(arguments(case))
    assert Separator(path).system.extractor.model.settings["mask"] == "batch_softmax"


def test_config_json_of_the_seed_beside_a_torch_checkpoint(torch_file, tmp_path, capsys):
    path, case = torch_file("seed_small_short_ref")
    plain = Separator(path).system.extractor.model.settings
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"name": "run", "arch": {"type": "SpexPlus", "args": case.config}}))
    assert Separator(path).system.extractor.model.settings == plain
    config.write_text(json.dumps({"arch": {"args": {"causal": True, "non_linear": "sigmoid"}}}))
    assert Separator(path).system.extractor.model.settings == plain | dict(causal=True, mask="sigmoid")
    assert not capsys.readouterr().err  # it has one mask alone, so nothing is assumed


@pytest.mark.parametrize(
    ("preprocessing", "rate"),
    [({"sr": 8000}, 8000), ({"sr": 22050.0}, 22050), ({"sr": 0}, 16000), ({"sr": "8000"}, 16000), ([], 16000)],
)
def test_config_json_of_the_seed_tells_the_rate(torch_file, tmp_path, preprocessing, rate):
    path, case = torch_file("seed_small_short_ref")
    assert Separator(path).sample_rate == 16000
    (tmp_path / "config.json").write_text(json.dumps({"preprocessing": preprocessing, "arch": {"args": case.config}}))
    separator = Separator(path)
    assert separator.sample_rate == rate
    if rate == 8000:  # Windows are of as many samples, so that what comes at the rate goes through as it is.
        extractor = separator.system.extractor
        expected = extractor(mixture(), extractor.embed(voice(1)))
        np.testing.assert_allclose(separator(mixture(), rate, voice(1)), expected[None], atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (dict(non_linear="tanh"), "non_linear is 'tanh'; mend it, it can be relu, sigmoid, softmax"),
        (dict(causal=1), "causal is 1; mend it"),
        (dict(norm="gLN"), "says norm global, but .* has channel; put the file of this checkpoint"),
        (dict(H=512), "says units 512, but .* has 20"),
    ],
)
def test_refuses_an_mdl_json_that_does_not_fit(torch_file, tmp_path, changed, said):
    path, case = torch_file("authors_small_cln_causal_sigmoid")
    (tmp_path / "mdl.json").write_text(arguments(case, **changed))
    with pytest.raises(UserError, match=f"mdl.json: {said}"):
        Separator(path)
    (tmp_path / "mdl.json").write_text("{")
    with pytest.raises(UserError, match="mdl.json: not understood"):
        Separator(path)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "no enrolment: give a recording of the wanted talker alone"),
        (["--enrolment=nowhere.wav"], "nowhere.wav: no such file"),
        (["--enrolment=voice.wav", "--enrolment=short.wav"], "short.wav: 0.38 s of the wanted talker, 0.5 s are"),
        (["--enrolment=silent.wav"], "silent.wav: silent, so it shows no voice"),
        (["--enrolment=voice.wav", "--seed=1"], "--seed: SpEx+ has no use for it"),
        (["--enrolment=voice.wav", "--grouping=online"], "not causal, it looks at what is still to come"),
    ],
)
def test_refuses(inside, flags, said):
    assert said in separate(inside, "mixture.wav", *flags, runner=speech.refuse)


def test_the_page_shows_mixture_and_talker(inside, tmp_path):
    demo = pytest.importorskip("nn.demo")
    separator = Separator(PREFIX)
    bar = lambda _, name, total, unit: demo.PageBar(lambda share, desc: None, total)  # noqa: E731
    shown, line = demo.separate_recording(separator, "mixture.wav", str(tmp_path), bar, "voice.wav")
    assert [os.path.basename(path) for path, _ in shown] == ["mixture_mixture.wav", "mixture_s1.wav"]
    assert all(os.path.getsize(picture) > 1000 for _, picture in shown)
    assert f"confidence that the talker is there {separator.confidence:.3f}" in line
