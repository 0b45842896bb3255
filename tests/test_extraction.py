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

from feat.files import UserError
from models.spex_plus import VARIANTS, SpexPlus
from nn import checkpoint
from nn.extraction import Extractor
from nn.separate import Separator

RATE = speech.RATE
SIZES = dict(filters=8, bottleneck=6, units=10, embedding_dim=5, speaker_units=7, dilations=2, repeats=2, classes=3)
PREFIX = "exp/spex_plus/models/run/spex_plus_model.ckpt_step_1"
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
        (["--enrolment=voice.wav", "--grouping=online"], "SpEx+ groups nothing"),
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
