"""nn/separate.py on recordings as people have them, with the smallest nets, and what makes long files work."""

import os
import shutil

import numpy as np
import pytest
import soundfile
import speech
from tiny_deep_casa import nets, save

from feat.signals.audio import read_blocks, resample, resample_blocks
from models.losses import permutations
from nn.recordings.windows import best_order
from nn.systems.deep_casa import clustering
from nn.systems.separator import Separator

EXP = "exp/deep_casa_wsj/models"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with both stages, untrained, and a stage 1 of utterance-level training."""
    folder = tmp_path_factory.mktemp("separate")
    save(folder / EXP, *nets(2, causal=False))
    speech.make_corpus(folder, dict(tr=2, cv=1))
    options = speech.SIMUL | dict(epoch=1, time_stamp="simul", exp_name="upit", pit="utterance")
    speech.succeed(folder, "nn/simul_group.py", "--on_the_fly", **options)
    return folder


@pytest.fixture
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def separate(folder, *arguments, succeeds=True, **named):
    """Runs the script with --resume_model on the folder of both stages unless told otherwise."""
    named = {"resume_model": EXP} | named
    arguments = [*arguments, *(f"--{name}={value}" for name, value in named.items())]
    done = speech.run_here(folder, "nn/separate.py", *arguments, corpus_flags=False)
    assert "Traceback" not in done.stderr
    if succeeds:
        assert done.returncode == 0, done.stderr
        return done.stdout
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def recording(seconds, rate, channels=1):
    voices = np.stack([speech.voice(i, 0, seconds, rate) for i in range(channels + 1)], axis=1)
    return voices[:, :channels] + voices[:, 1:]


@pytest.mark.parametrize("rates", [(44100, 8000), (8000, 44100), (16000, 8000), (11025, 16000), (8000, 8000)])
def test_resampling_in_blocks_is_resampling(rates):
    x = np.random.default_rng(0).standard_normal(3 * rates[0] + 17).astype(np.float32)
    blocks = np.split(x, [5, 1000, 1001, 2 * rates[0]])
    joined = np.concatenate(list(resample_blocks(blocks, *rates)))
    np.testing.assert_allclose(joined, resample(x, *rates), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "rate", "seconds", "channels", "subtype"),
    [
        ("short.wav", 8000, 0.02, 1, "PCM_16"),
        ("speech.flac", 44100, 1.1, 1, "PCM_24"),
        ("stereo.ogg", 16000, 0.7, 2, "VORBIS"),
        ("float.wav", 22050, 0.5, 1, "FLOAT"),
    ],
)
def test_any_recording(inside, name, rate, seconds, channels, subtype):
    samples = recording(seconds, rate, channels)
    soundfile.write(name, samples, rate, subtype=subtype)
    stem = name.split(".")[0]
    separate(inside, name, output_dir="any", window_seconds=0.4, overlap_seconds=0.1)
    for talker in (1, 2):
        separated, its_rate = soundfile.read(f"any/{stem}_s{talker}.wav")
        assert its_rate == rate and len(separated) == soundfile.info(name).frames and np.isfinite(separated).all()
        assert soundfile.info(f"any/{stem}_s{talker}.wav").subtype == "PCM_16"


def test_in_python_the_same(inside):
    samples = recording(1.0, 16000)[:, 0]
    soundfile.write("same.wav", samples, 16000, subtype="FLOAT")
    separate(inside, "same.wav", output_dir="same", subtype="FLOAT")
    talkers = Separator(EXP)(samples, 16000)
    assert talkers.shape == (2, 16000)
    for i, talker in enumerate(talkers):
        np.testing.assert_allclose(soundfile.read(f"same/same_s{i + 1}.wav")[0], talker, atol=1e-5)


def test_the_talkers_sum_to_the_recording(inside):
    samples = recording(1.3, 8000)[:, 0]
    for windows in ({}, dict(window_seconds=0.4, overlap_seconds=0.1)):
        talkers = Separator(EXP, **windows)(samples, 8000)
        np.testing.assert_allclose(talkers.sum(axis=0), samples, atol=1e-6)
        assert np.abs(talkers[0] - talkers[1]).max() > 0.01


def test_a_folder_each_channel_and_again(inside):
    os.makedirs("in/deep", exist_ok=True)
    soundfile.write("in/a.wav", recording(0.3, 8000), 8000)
    soundfile.write("in/deep/b.wav", recording(0.4, 8000, 2), 8000)
    flags = dict(output_dir="folder", channels="each")
    separate(inside, "in", **flags)
    names = {os.path.join(root, name) for root, _, files in os.walk("folder") for name in files}
    talkers = {"folder/a_s1.wav", "folder/a_s2.wav"}
    talkers |= {f"folder/deep/b_ch{channel}_s{talker}.wav" for channel in (1, 2) for talker in (1, 2)}
    assert names == talkers | {"folder/separate.json"}
    os.remove("folder/a_s1.wav")
    printed = separate(inside, "in", **flags)
    assert "in/deep/b.wav: separated already" in printed and "in/a.wav: separated already" not in printed
    assert "separated already" not in separate(inside, "in", **flags | dict(seed=1))


def test_only_what_is_of_this_recording_is_separated_already(inside):
    """Not another one of its name, nor what it was before it was written anew, nor what others wrote over."""

    def outputs():
        return soundfile.read("of/mix_s1.wav")[0]

    for name, seconds in (("x", 0.3), ("y", 0.4)):
        os.makedirs(name, exist_ok=True)
        soundfile.write(f"{name}/mix.wav", recording(seconds, 8000), 8000)
    for name, samples in (("x", 2400), ("y", 3200), ("x", 2400)):
        assert "separated already" not in separate(inside, f"{name}/mix.wav", output_dir="of")
        assert len(outputs()) == samples
    assert "separated already" in separate(inside, "x/mix.wav", output_dir="of")
    assert "separated already" in separate(inside, os.path.abspath("x/mix.wav"), output_dir="of")
    expected = outputs()
    soundfile.write("x/mix.wav", 0.5 * recording(0.3, 8000), 8000)  # as many bytes
    assert "separated already" not in separate(inside, "x/mix.wav", output_dir="of")
    assert np.abs(outputs() - expected).max() > 0.01
    expected = outputs()
    soundfile.write("of/mix_s1.wav", np.zeros(2400), 8000)
    assert "separated already" not in separate(inside, "x/mix.wav", output_dir="of")
    np.testing.assert_array_equal(outputs(), expected)


def test_options_are_those_of_each_recording(inside):
    """What one run made with others is not taken for what the last one did."""
    for name in ("one", "two"):
        soundfile.write(f"{name}.wav", recording(0.3, 8000), 8000)
    flags = dict(output_dir="options")
    separate(inside, "two.wav", **flags, subtype="PCM_24")
    separate(inside, "one.wav", **flags, subtype="FLOAT")
    assert "separated already" not in separate(inside, "two.wav", **flags, subtype="FLOAT")
    assert soundfile.info("options/two_s1.wav").subtype == "FLOAT"
    printed = separate(inside, "one.wav", "two.wav", **flags, subtype="FLOAT")
    assert printed.count("separated already") == 2


@pytest.mark.parametrize("text", ["{", "[]", '{"seed": 0}', '{"options": {}, "recordings": {"again": null}}'])
def test_what_an_unknown_separate_json_says_counts_for_nothing(inside, text):
    soundfile.write("again.wav", recording(0.3, 8000), 8000)
    separate(inside, "again.wav", output_dir="again")
    with open("again/separate.json", "w", encoding="utf-8") as file:
        file.write(text)
    assert "separated already" not in separate(inside, "again.wav", output_dir="again")
    assert "separated already" in separate(inside, "again.wav", output_dir="again")


def test_a_run_that_was_broken_off_goes_on(inside):
    names = ("a", "b", "c")
    os.makedirs("many", exist_ok=True)
    for name in names:
        soundfile.write(f"many/{name}.wav", recording(0.3, 8000), 8000)
    os.makedirs("broken_off/b_s2.wav")  # ends it in the midst of b
    assert "b_s2.wav" in separate(inside, "many", output_dir="broken_off", succeeds=False)
    assert sorted(os.listdir("broken_off")) == ["a_s1.wav", "a_s2.wav", "b_s1.wav", "b_s2.wav", "separate.json"]
    os.rmdir("broken_off/b_s2.wav")
    printed = separate(inside, "many", output_dir="broken_off")
    assert [f"many/{name}.wav: separated already" in printed for name in names] == [True, False, False]


def test_what_would_be_clipped_is_made_quieter_and_said(inside):
    loud = recording(0.5, 8000)[:, 0]
    soundfile.write("loud.wav", loud / np.abs(loud).max() * 30, 8000, subtype="FLOAT")
    assert "made quieter by" in separate(inside, "loud.wav", output_dir="loud")
    separate(inside, "loud.wav", output_dir="loud_float", subtype="FLOAT")
    ours, exact = (np.stack([soundfile.read(f"{d}/loud_s{i}.wav")[0] for i in (1, 2)]) for d in ("loud", "loud_float"))
    assert np.abs(ours).max() <= 1
    np.testing.assert_allclose(ours, exact / np.abs(exact).max(), atol=1e-3)


def test_utterance_level_training_needs_no_second_stage(inside):
    soundfile.write("upit.wav", recording(1.0, 8000), 8000)
    separate(
        inside,
        "upit.wav",
        resume_model="exp/upit/models/simul/best",
        output_dir="upit",
        window_seconds=0.4,
        overlap_seconds=0.1,
    )
    assert len(soundfile.read("upit/upit_s2.wav")[0]) == 8000


@pytest.mark.parametrize(
    ("arguments", "named", "said"),
    [
        ([], {}, "no recording given"),
        (["nowhere.wav"], {}, "nowhere.wav"),
        (["text.wav"], {}, "text.wav"),
        (["ok.wav"], dict(resume_model="nowhere"), "nowhere: no checkpoint here"),
        (["ok.wav"], dict(resume_model="lists"), "no checkpoint marked best below it"),
        (["ok.wav"], dict(resume_model=f"{EXP}/dense_unet/best"), "give the checkpoint of the second stage too"),
        (["ok.wav"], dict(resume_model=f"{EXP}/sequential_grouping/best"), "the second stage alone"),
        (["ok.wav"], dict(resume_model="exp"), "are both of dense_unet"),
        (["ok.wav"], dict(overlap_seconds=9), "--overlap_seconds 9.0"),
        (["ok.wav", "ok.flac"], {}, "would both be written as ok"),
        (["ok.wav"], dict(enrolment="ok.wav"), "Deep CASA takes all talkers apart and needs none"),
        (["ok.wav"], dict(reject="file"), "--reject: Deep CASA has no use for it"),
    ],
)
def test_refuses(inside, arguments, named, said):
    soundfile.write("ok.wav", recording(0.2, 8000), 8000)
    soundfile.write("ok.flac", recording(0.2, 8000), 8000)
    with open("text.wav", "w", encoding="utf-8") as file:
        file.write("not audio")
    assert said in separate(inside, *arguments, succeeds=False, output_dir="refused", **named)


BAD = {
    "cut": "truncated",
    "empty": "empty (0 bytes)",
    "no_samples": "holds 0 samples",
    "one": "1 samples, 0.1 ms; nothing below 20 ms can be separated",
    "zeros": "silent, every sample is 0",
    "nan": "NaN or infinite",
    "folder": "a folder, not an audio file",
}


def test_bad_recordings_are_named_and_the_others_done(inside):
    os.makedirs("bad", exist_ok=True)
    good = recording(0.5, 300_000, 7)
    samples = {"no_samples": [], "one": [0.1], "zeros": np.zeros(999), "nan": [0, np.nan] * 99}
    for name, signal in samples.items():
        soundfile.write(f"bad/{name}.wav", np.asarray(signal, float), 8000, subtype="FLOAT")
    soundfile.write("bad/good.wav", good, 300_000)
    shutil.copy("bad/good.wav", "bad/cut.wav")
    os.truncate("bad/cut.wav", 8000)
    open("bad/empty.wav", "w").close()
    os.makedirs("bad/folder.wav", exist_ok=True)
    done = speech.run_here(
        inside, "nn/separate.py", f"--resume_model={EXP}", "bad", "--output_dir=bad_out", corpus_flags=False
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{len(BAD)} of {len(BAD) + 1} recordings were not separated" in errors.pop()
    for name, said in BAD.items():
        (line,) = [line for line in errors if f"bad/{name}.wav: " in line]
        assert said in line
    assert sorted(os.listdir("bad_out")) == ["good_s1.wav", "good_s2.wav", "separate.json"]
    assert soundfile.info("bad_out/good_s1.wav").frames == len(good)
    assert BAD["zeros"] in separate(inside, "bad/zeros.wav", succeeds=False, output_dir="bad_out")


def test_blocks_of_a_file(inside):
    samples = recording(1.0, 8000, 2)
    soundfile.write("blocks.wav", samples, 8000, subtype="FLOAT")
    for channel, expected in ((0, samples[:, 0]), (1, samples[:, 1]), (None, samples.mean(axis=1))):
        blocks = list(read_blocks("blocks.wav", channel, 0.3))
        assert len(blocks) == 4
        np.testing.assert_allclose(np.concatenate(blocks), expected, atol=1e-6)


@pytest.mark.parametrize("talkers", [2, 3])
def test_talkers_keep_their_places_although_windows_turn(talkers):
    """Embeddings of every window are turned at random; the clusters come out as if they had not been."""
    random = np.random.default_rng(talkers)
    frames, window, step, dimension = 400, 100, 70, 6
    per_frame = 1 if talkers == 2 else talkers
    orders = permutations(talkers)
    truth = random.integers(len(orders), size=frames)
    sources = random.standard_normal((talkers, frames, 5, 2)).astype(np.float32)
    inverse = np.argsort(orders, axis=1)
    # Estimate i of a frame is talker orders[truth][i].
    estimates = np.take_along_axis(sources, orders[truth].T[:, :, None, None], axis=0)
    centres = np.eye(talkers, dimension)
    labels = truth[:, None] if talkers == 2 else orders[truth]
    embeddings = centres[labels] + 0.1 * random.standard_normal((frames, per_frame, dimension))
    whole = clustering.WindowClustering(talkers, seed=0)
    starts = [*range(0, frames - window, step), frames - window]
    for start in starts:
        turn = np.linalg.qr(random.standard_normal((dimension, dimension)))[0]
        part = slice(start, start + window)
        whole.add(start, estimates[:, part], (embeddings[part] @ turn).astype(np.float32))
    found = np.zeros(frames, int)
    for start, order in zip(starts, whole.orders()):
        found[start : start + window] = order
    ordered = clustering.permute(estimates, found)
    error = min(np.abs(ordered[list(order)] - sources).max(axis=(0, 2, 3)).astype(bool).mean() for order in orders)
    assert error < 0.01 and inverse.shape == orders.shape


def test_best_order():
    x = np.random.default_rng(0).standard_normal((3, 50))
    for order in permutations(3):
        np.testing.assert_array_equal(x[order][best_order(x, x[order])], x)
