"""The features: what is kept, what is made again, and what is refused."""

import os
import shutil
import subprocess
import time

import numpy as np
import pytest
import soundfile
import speech

from feat.base.files import UserError
from feat.corpora import cache
from feat.corpora.features import FeatureSettings, mixture_length
from feat.corpora.lists import mixture_paths

FEATURES = "exp/deep_casa_wsj/feat"


@pytest.fixture
def corpus(tmp_path):
    """(folder, {set name: [mixture name]}) of a corpus that a test may spoil."""
    return tmp_path, speech.make_corpus(tmp_path, dict(tr=3, cv=1, tt=1))


def feature_files(folder):
    return sorted((folder / FEATURES).rglob("*.npy"))


def wav(folder, name, source="mix", set_name="tr"):
    return mixture_paths(str(folder / "data"), set_name, name)[source]


def test_writes_the_spectra_of_the_wavs(corpus):
    folder, lists = corpus
    speech.succeed(folder, "feat/feat_gen.py", num_workers=1)
    name = lists["tr"][0]
    signals = [soundfile.read(wav(folder, name, source))[0] for source in ("s1", "s2", "mix")]
    features = np.load(cache.feature_path(folder / FEATURES, "tr", name))
    window = np.sqrt(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(256) / 256))
    for i, signal in enumerate(signals):
        spectrum = np.fft.rfft(signal[128:384] * window)  # frame 2
        np.testing.assert_allclose(features[2 * i, 2], spectrum.real, atol=1e-5)
        np.testing.assert_allclose(features[2 * i + 1, 2], spectrum.imag, atol=1e-5)
    waves = np.load(cache.wave_path(folder / FEATURES, "tr", name))
    assert features.dtype == waves.dtype == np.float32
    np.testing.assert_array_equal(waves, [signal[: waves.shape[1]] for signal in signals])
    assert len(signals[0]) - 64 < waves.shape[1] == 256 + 64 * (features.shape[1] - 1)


def test_keeps_whole_files_and_makes_broken_ones_again(corpus):
    folder, lists = corpus
    assert "5 mixtures written, 0 found whole" in speech.succeed(folder, "feat/feat_gen.py", num_workers=1)
    files = feature_files(folder)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    cut, gone = cache.feature_path(folder / FEATURES, "tr", lists["tr"][0]), files[-1]
    os.truncate(cut, 1000)
    gone.unlink()
    assert "2 mixtures written, 3 found whole" in speech.succeed(folder, "feat/feat_gen.py", num_workers=1)
    assert {path: path.read_bytes() for path in files} == {path: data for path, (data, _) in before.items()}
    untouched = cache.feature_path(folder / FEATURES, "tr", lists["tr"][1])
    assert os.stat(untouched).st_mtime_ns == before[type(files[0])(untouched)][1]


def test_features_of_wavs_that_changed_are_made_again(corpus):
    folder, lists = corpus
    speech.succeed(folder, "feat/feat_gen.py", num_workers=1)
    name = lists["tr"][0]
    signals = [np.roll(speech.voice(0, i, 1.0), i) for i in range(2)]
    speech.write_mixture(folder, "tr", name, signals)
    before = np.load(cache.wave_path(folder / FEATURES, "tr", name))
    assert "1 mixtures written, 4 found whole" in speech.succeed(folder, "feat/feat_gen.py", num_workers=1)
    assert not np.array_equal(np.load(cache.wave_path(folder / FEATURES, "tr", name)), before)


def test_other_settings_are_made_again(corpus):
    folder, _ = corpus
    speech.succeed(folder, "feat/feat_gen.py", num_workers=1)
    assert "5 mixtures written" in speech.succeed(folder, "feat/feat_gen.py", num_workers=1, hop_size=32)


def spoil_missing(path):
    os.remove(path)


def spoil_rate(path):
    soundfile.write(path, soundfile.read(path)[0], 16000, subtype="PCM_16")


def spoil_stereo(path):
    samples = soundfile.read(path)[0]
    soundfile.write(path, np.stack([samples, samples], axis=1), speech.RATE, subtype="PCM_16")


def spoil_length(path):
    soundfile.write(path, soundfile.read(path)[0][:-10], speech.RATE, subtype="PCM_16")


def spoil_nan(path):
    samples = soundfile.read(path)[0]
    samples[100] = np.nan
    soundfile.write(path, samples, speech.RATE, subtype="FLOAT")


def spoil_cut(path):
    os.truncate(path, os.path.getsize(path) // 2)


SPOILS = {
    spoil_missing: "no such file",
    spoil_rate: "16000 Hz, 8000 Hz is needed",
    spoil_stereo: "2 channels",
    spoil_length: "samples, but",
    spoil_nan: "16-bit PCM is needed",
    spoil_cut: "truncated",
}


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda spoil: spoil.__name__)
def test_refuses_an_unusable_wav_by_name(corpus, spoil):
    folder, lists = corpus
    name = lists["tr"][1]
    spoil(wav(folder, name, "s2"))
    line = speech.refuse(folder, "feat/feat_gen.py", num_workers=1)
    assert name in line and SPOILS[spoil] in line
    assert not feature_files(folder)
    settings = FeatureSettings(str(folder / "data"), str(folder / FEATURES))
    with pytest.raises(UserError, match=SPOILS[spoil]):
        mixture_length(settings, "tr", name)


def test_refuses_a_mixture_below_one_window(corpus):
    folder, lists = corpus
    speech.write_mixture(folder, "tr", lists["tr"][0], [speech.voice(i, 0, 0.03) for i in range(2)])
    assert "240 samples are shorter than one window of 256" in speech.refuse(folder, "feat/feat_gen.py", num_workers=1)


def test_refuses_an_empty_list(corpus):
    folder, _ = corpus
    speech.write_list(folder, "cv", [])
    assert "list is empty" in speech.refuse(folder, "feat/feat_gen.py")


def test_warns_of_a_silent_source_by_name(corpus):
    folder, lists = corpus
    sources = [speech.voice(0, 0, 0.5), np.zeros(4000, np.float32)]
    speech.write_mixture(folder, "tr", lists["tr"][0], sources)
    printed = speech.succeed(folder, "feat/feat_gen.py", num_workers=1)
    assert printed.count("warning") == 1 and f"s2/{lists['tr'][0]}.wav: silent" in printed


def test_names_the_folder_that_cannot_be_written(corpus):
    folder, _ = corpus
    (folder / "exp").write_text("in the way")
    assert FEATURES in speech.refuse(folder, "feat/feat_gen.py", num_workers=1)


def test_a_full_disk_is_one_line_and_loses_nothing(corpus):
    folder, lists = corpus
    speech.succeed(folder, "feat/feat_gen.py", num_workers=1, sets="cv")
    before = {path: path.read_bytes() for path in feature_files(folder)}
    line = speech.refuse(folder, "feat/feat_gen.py", num_workers=1, largest_file=20_000, runner=speech.run)
    assert FEATURES in line and "run the same command again" in line
    assert {path: path.read_bytes() for path in feature_files(folder)} == before
    assert "4 mixtures written, 1 found whole" in speech.succeed(folder, "feat/feat_gen.py", num_workers=1)


def test_a_killed_run_goes_on(corpus):
    folder, _ = corpus
    speech.make_corpus(folder, dict(tr=200, cv=1, tt=1))
    process = subprocess.Popen(speech.command("feat/feat_gen.py", num_workers=2), cwd=folder, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(feature_files(folder)) < 20 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    time.sleep(0.5)  # its workers notice
    speech.succeed(folder, "feat/feat_gen.py", num_workers=1)
    shutil.move(folder / FEATURES, folder / "resumed")
    speech.succeed(folder, "feat/feat_gen.py", num_workers=1)
    for path in feature_files(folder):
        assert (folder / "resumed" / path.relative_to(folder / FEATURES)).read_bytes() == path.read_bytes()
