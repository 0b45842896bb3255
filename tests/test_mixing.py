"""Levels and mixing, against what is known in closed form."""

import collections
import random

import numpy as np
import pytest

from feat.base.files import UserError
from feat.signals import mixing

RATE = 8000


def tone(seconds, amplitude=0.25, hz=1000, rate=RATE):
    return amplitude * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)


def bursts(seconds=4.0, seed=0):
    """Noise that comes and goes about twice a second, like syllables with pauses."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(int(seconds * RATE)) / RATE
    return 0.1 * rng.standard_normal(len(time_s)) * np.clip(np.sin(2 * np.pi * 2 * time_s + seed), 0, None)


@pytest.mark.parametrize("revision", mixing.LEVEL_REVISIONS)
@pytest.mark.parametrize("rate", [8000, 11025, 16000])
def test_a_steady_tone_has_its_own_power(revision, rate):
    level, activity = mixing.active_level(tone(8, rate=rate), rate, revision)
    assert 10 * np.log10(level / (0.25**2 / 2)) == pytest.approx(0, abs=0.2)
    assert activity == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("revision", mixing.LEVEL_REVISIONS)
def test_pauses_do_not_lower_the_level(revision):
    speech = tone(4)
    paused = np.concatenate([np.zeros(4 * RATE), speech, np.zeros(8 * RATE)])
    level, activity = mixing.active_level(paused, RATE, revision)
    # The hang-over of 0.2 s after the speech counts as active.
    assert 10 * np.log10(level / (0.25**2 / 2)) == pytest.approx(0, abs=0.5)
    assert activity == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("revision", mixing.LEVEL_REVISIONS)
def test_level_follows_the_power_and_activity_does_not(revision):
    level, activity = mixing.active_level(bursts(), RATE, revision)
    louder, same = mixing.active_level(4 * bursts(), RATE, revision)
    assert louder == pytest.approx(16 * level, rel=1e-9)
    assert same == pytest.approx(activity, rel=1e-9)


def test_hum_below_the_speech_band_is_left_out():
    level, _ = mixing.active_level(tone(4), RATE)
    with_hum, _ = mixing.active_level(tone(4) + tone(4, hz=30), RATE)
    assert with_hum == pytest.approx(level, rel=0.01)


def test_silence_has_no_level():
    with pytest.raises(ValueError, match="silent"):
        mixing.active_level(np.zeros(RATE), RATE)
    with pytest.raises(ValueError, match="revision"):
        mixing.active_level(tone(1), RATE, "newest")


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_mixture_is_the_sum_of_its_sources_and_peaks_at_nine_tenths(mode):
    sources = [bursts(2.0, 1), bursts(3.0, 2), bursts(2.5, 3)]
    mixture, scaled = mixing.mix_sources(sources, [0.01, 0.02, 0.03], ("1.5", "-1.5", "0"), mode)
    assert {len(signal) for signal in [mixture, *scaled]} == {int((2 if mode == "min" else 3) * RATE)}
    np.testing.assert_allclose(mixture, np.sum(scaled, axis=0), atol=1e-12)
    assert max(np.abs(signal).max() for signal in [mixture, *scaled]) == pytest.approx(0.9)


def test_padding_is_at_the_end():
    _, (short, _) = mixing.mix_sources([bursts(1.0, 1), bursts(2.0, 2)], [1, 1], (0, 0), "max")
    assert np.all(short[RATE:] == 0)
    original = bursts(1.0, 1)
    np.testing.assert_allclose(short[:RATE] / short[:RATE].std(), original / original.std())


def test_active_levels_in_the_mixture_differ_by_the_gains():
    sources = [0.3 * bursts(4.0, 1), 2.0 * bursts(4.0, 2)]
    levels = [mixing.active_level(source, RATE)[0] for source in sources]
    _, scaled = mixing.mix_sources(sources, levels, ("2", "-2"))
    first, second = (10 * np.log10(mixing.active_level(source, RATE)[0]) for source in scaled)
    assert first - second == pytest.approx(4, abs=0.01)


UTTERANCES = {talker: [f"{talker}/{talker}{k}.wav" for k in range(3)] for talker in "abcde"}


@pytest.mark.parametrize("talkers", [2, 3])
def test_drawn_mixtures(talkers):
    lines = mixing.draw_mixtures(UTTERANCES, 400, talkers, random.Random(1))
    assert len({line.name for line in lines}) == 400
    gains_db = np.array([[float(gain) for gain in line.gains_db] for line in lines])
    np.testing.assert_array_equal(gains_db[:, 0], -gains_db[:, 1])
    assert np.all(gains_db[:, 2:] == 0)
    assert np.abs(gains_db).max() <= 2.5
    assert 150 < (gains_db[:, 0] > 0).sum() < 250
    for line in lines:
        assert len({path[0] for path in line.paths}) == talkers
    used = collections.Counter(path for line in lines for path in line.paths)
    assert len(used) == 15


def test_a_longer_draw_begins_like_a_shorter_one():
    def draw(count, seed):
        return mixing.draw_sets({"tr": UTTERANCES}, {"tr": count}, 2, seed)["tr"]

    assert draw(20, 0)[:10] == draw(10, 0)
    assert draw(10, 1) != draw(10, 0)


def test_too_few_talkers_name_the_set():
    with pytest.raises(UserError, match="set cv: 1 talkers"):
        mixing.draw_sets({"cv": {"a": ["a.wav"]}}, {"cv": 3}, 2, 0)
