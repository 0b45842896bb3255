"""Audio files: what is written comes back, and unusable files are refused with their name and the mend."""

import numpy as np
import pytest
import soundfile

from feat.base.files import UserError
from feat.signals import audio

RATE = 8000


def tone(seconds=0.1, rate=RATE, hz=440.0):
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)


@pytest.fixture
def wav(tmp_path):
    path = tmp_path / "tone.wav"
    audio.write_pcm16(path, tone(), RATE)
    return path


def write_as(path, samples, kind, rate=RATE):
    """Writes 16-bit samples in one of the ways that wavs come in, whatever the name of the file says.

    Args:
        samples: int16 [samples] or [samples, channels].
        kind: "plain", "extensible", "chunks" (odd ones before and behind the samples), "streamed" (of unknown
            length), or a format of libsndfile.
    """
    container = {"plain": "WAV", "extensible": "WAVEX", "RIFX": "WAV", "chunks": "WAV", "streamed": "WAV"}
    endian = "BIG" if kind == "RIFX" else "FILE"
    soundfile.write(path, samples, rate, "PCM_16", format=container.get(kind, kind), endian=endian)
    with open(path, "rb") as file:
        data = file.read()
    at = data.index(b"data") if data[:4] == b"RIFF" else None
    if kind == "chunks":
        data = data[:at] + b"LIST\x07\0\0\0INFOabc\0" + data[at:] + b"id3 \x05\0\0\0abcde\0"
        data = data[:4] + (len(data) - 8).to_bytes(4, "little") + data[8:]
    if kind == "streamed":
        data = data[:4] + b"\xff" * 4 + data[8 : at + 4] + b"\xff" * 4 + data[at + 8 :]
    with open(path, "wb") as file:
        file.write(data)


def refusal(path, read=audio.read_mono, **arguments):
    """The message of the refusal, which must be one line that names the file."""
    with pytest.raises(UserError) as refused:
        read(path, **arguments)
    message = str(refused.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_int16_samples_come_back_as_they_were(tmp_path):
    path = tmp_path / "new" / "folder" / "a.wav"
    samples = np.array([-32768, -1, 0, 1, 32767], np.int16)
    audio.write_pcm16(path, samples, RATE)
    np.testing.assert_array_equal(audio.read_pcm16(path, RATE), samples)
    np.testing.assert_array_equal(audio.read_mono(path, RATE), samples.astype(np.float32) / 32768)
    assert audio.read_mono(path).dtype == np.float32
    assert soundfile.info(path).subtype == "PCM_16"


def test_float_samples_are_rounded_to_the_nearest():
    steps = np.array([-32768, 32768, 0.6, -0.6, 0.4])
    assert audio.to_int16(steps / 32768).tolist() == [-32768, 32767, 1, -1, 0]


@pytest.mark.parametrize("bad", [1.01, -1.01, np.nan, np.inf])
def test_samples_that_int16_cannot_hold_are_never_written(tmp_path, bad):
    path = tmp_path / "loud.wav"
    assert "scale" in refusal(path, lambda path: audio.write_pcm16(path, [0.0, bad], RATE))
    assert not path.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_refused_write_leaves_the_old_file(wav):
    before = wav.read_bytes()
    with pytest.raises(UserError):
        audio.write_pcm16(wav, [2.0], RATE)
    assert wav.read_bytes() == before


def test_header(wav):
    assert audio.wav_info(wav) == (800, RATE, 1, "PCM_16")
    assert audio.duration(wav) == pytest.approx(0.1)


def test_other_formats_are_read_as_floats(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(), RATE, subtype="PCM_24")
    np.testing.assert_allclose(audio.read_mono(path), tone(), atol=1e-6)
    assert "PCM_24" in refusal(path, audio.read_pcm16)


def test_wrong_rate_names_both_rates(wav):
    message = refusal(wav, sample_rate=16000)
    assert "8000" in message
    assert "16000" in message


def test_stereo(tmp_path):
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.zeros((10, 2)), RATE)
    assert "2 channels" in refusal(path)


def test_missing_empty_and_foreign_files(tmp_path):
    assert "no such file" in refusal(tmp_path / "none.wav")
    assert "folder" in refusal(tmp_path)
    empty = tmp_path / "empty.wav"
    empty.touch()
    assert "0 bytes" in refusal(empty)
    text = tmp_path / "text.wav"
    text.write_text("this is no audio")
    assert "not an audio file" in refusal(text)
    silent = tmp_path / "headeronly.wav"
    soundfile.write(silent, np.zeros(0), RATE)
    assert "0 samples" in refusal(silent)


@pytest.mark.parametrize("kept_bytes", [30, 44, 100, 1000])
def test_a_cut_wav_is_not_taken_for_a_short_one(wav, kept_bytes):
    wav.write_bytes(wav.read_bytes()[:kept_bytes])
    assert refusal(wav)


def test_a_cut_flac(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, RATE), RATE)
    path.write_bytes(path.read_bytes()[:-3000])
    assert refusal(path)


def test_chunks_before_the_samples_are_skipped(wav):
    data = wav.read_bytes()
    at = data.index(b"data")
    wav.write_bytes(data[:at] + b"LIST\x03\x00\x00\x00abc\x00" + data[at:])
    np.testing.assert_allclose(audio.read_mono(wav), tone(), atol=2e-5)


@pytest.mark.parametrize("kind", ["plain", "extensible", "chunks", "streamed", "RIFX", "RF64", "FLAC", "AIFF"])
def test_wavs_of_all_kinds(tmp_path, kind):
    samples = np.random.default_rng(0).integers(-30000, 30000, 500, np.int16)
    path = tmp_path / "a.wav"
    write_as(path, samples, kind)
    np.testing.assert_array_equal(audio.read_pcm16(path, RATE), samples)
    offset = audio.samples_offset(path)
    assert (offset >= 0) == (kind in ("plain", "extensible", "chunks", "streamed"))
    if offset >= 0:
        np.testing.assert_array_equal(np.frombuffer(path.read_bytes()[offset:][:1000], "<i2"), samples)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_no_numbers(tmp_path, bad):
    path = tmp_path / "float.wav"
    samples = np.zeros(50, np.float32)
    samples[7] = bad
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    assert "the first at 7" in refusal(path)


def test_wsj0_as_distributed_is_recognised(tmp_path):
    sphere = tmp_path / "01to030v.wv1"
    sphere.write_bytes(b"NIST_1A\n   1024\n" + bytes(2000))
    assert "sph2pipe" in refusal(sphere)
    far = tmp_path / "01to030v.wv2"
    far.write_bytes(b"NIST_1A\n   1024\n" + bytes(2000))
    assert ".wv1" in refusal(far)


def test_resampling_keeps_a_tone_and_the_length_rule(wav):
    up = audio.resample(tone(1.0), RATE, 16000)
    assert len(up) == 16000
    np.testing.assert_allclose(up[800:-800], tone(1.0, 16000)[800:-800], atol=2e-3)
    assert len(audio.resample(np.zeros(26001), 16000, RATE)) == 13001
    assert audio.resample(np.zeros(10, np.float32), 16000, RATE).dtype == np.float32
    assert len(audio.read_resampled(wav, 16000)) == 1600
