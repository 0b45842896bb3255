"""Binaural mixtures: heads and rooms, mixtures made of them, and batches for training."""

import contextlib
import csv
import dataclasses
import io
import os
import shutil
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import soundfile
import tensorflow as tf
from scipy.signal import csd, welch
from speech import assert_same_batches, listed, refuse, succeed, voice

from feat import binaural_mix
from feat.base.files import UserError
from feat.batches import augment, binaural_tasnet, common
from feat.batches.augment import Augmentation
from feat.corpora import binaural_scenes
from feat.corpora.binaural_sets import read_manifest, set_folder, training_talkers
from feat.corpora.find import find_utterances
from feat.corpora.lists import SETS
from feat.corpora.mixture_tree import measure_level
from feat.signals import binaural, hrir, noises, rooms
from feat.signals.audio import read_mono, read_stereo, resample, write_float, write_pcm16

SCRIPT = "feat/binaural_mix.py"
RATE = 8000
COUNTS = dict(tr_mixtures=6, cv_mixtures=1, tt_mixtures=3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three talkers a set, two utterances each; one talker of tt is at 16 kHz."""
    folder = tmp_path_factory.mktemp("corpus")
    for i, set_name in enumerate(SETS):
        for talker in range(3):
            rate = 2 * RATE if (set_name, talker) == ("tt", 0) else RATE
            for k in range(2):
                path = folder / set_name / f"{set_name}{talker}" / f"{set_name}{talker}-{k}.wav"
                write_pcm16(path, voice(3 * i + talker, k, 0.5 + 0.1 * k + 0.05 * talker, rate), rate)
    return folder


def flags_for(corpus, folder, **named):
    return dict(corpus_root=corpus, output_folder=folder, corpus_flags=False, num_workers=1) | COUNTS | named


@pytest.fixture(scope="module", params=["2speakers", "3speakers", "noise", "reverb"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory):
    """kind -> folder with both length rules; every kind is made once."""
    folder, ready = tmp_path_factory.mktemp("binaural"), set()

    def make(kind):
        if kind not in ready:
            succeed(folder, SCRIPT, **flags_for(corpus, folder, kind=kind, modes="min,max"))
            ready.add(kind)
        return folder

    return make


def signals_of(folder, name):
    return {
        signal: soundfile.read(os.path.join(folder, signal, name + ".wav"))[0]
        for signal in os.listdir(folder)
        if signal != "manifest.csv"
    }


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()}


def power_db(x):
    return 10 * np.log10(np.mean(np.square(x)))


# Heads --------------------------------------------------------------------------------------------


def test_a_sphere_is_heard_as_theory_says():
    """Kuhn 1977: at low frequencies sound arrives 3 a/c sin(azimuth) earlier; high ones double before a wall."""
    radius, size = 0.09, 1 << 15
    frequency = np.fft.rfftfreq(size, 1 / hrir.CIPIC_RATE_HZ)
    low, high = np.searchsorted(frequency, (100, 17000))
    for azimuth in (-60, -20, 0, 45, 80):
        responses = hrir.sphere_responses(hrir.unit_vector(azimuth, 90), radius)  # from above
        spectrum = np.fft.rfft(responses, size, axis=0)
        phase = np.angle(spectrum[low, 1] * np.conj(spectrum[low, 0])) / (2 * np.pi * frequency[low])
        # The ears lie 10 degrees behind the axis.
        theory = 3 * radius / 343 * np.sin(np.radians(azimuth)) * np.cos(np.radians(10))
        assert phase == pytest.approx(theory, abs=12e-6)
        assert np.abs(spectrum[1]) == pytest.approx([1, 1], abs=0.03)
    towards_ear = hrir.sphere_responses(hrir.unit_vector(80, 180), radius)  # 100 degrees to the right
    assert np.abs(np.fft.rfft(towards_ear, size, axis=0))[high, 1] == pytest.approx(2, abs=0.05)


def write_sofa(path, heads_axis, swapped=False, rate=48000, taps=128, **replaced):
    """A SOFA file of a sphere at 48 kHz, of positions azimuth (counter-clockwise), elevation, distance."""
    azimuth, elevation = np.radians(heads_axis).T
    flat = np.cos(elevation)
    vectors = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], axis=1)
    responses = hrir.sphere_responses(vectors, 0.0875, rate, taps)
    values = {
        "Data.IR": np.moveaxis(responses[..., ::-1] if swapped else responses, 2, 1),
        "Data.SamplingRate": [float(rate)],
        "SourcePosition": np.concatenate([heads_axis, np.full((len(heads_axis), 1), 1.4)], axis=1),
    } | replaced
    with h5py.File(path, "w") as file:
        file.attrs["SOFAConventions"] = np.bytes_("SimpleFreeFieldHRIR")
        for name, value in values.items():
            if value is not None:
                file[name] = np.asarray(value, np.float64)
        if "SourcePosition" in file:
            file["SourcePosition"].attrs["Type"] = np.bytes_("spherical")
    return str(path)


ALL_AROUND = np.array([(a, e) for e in range(-40, 91, 10) for a in range(0, 360, 5)], float)


def test_sofa_positions_are_those_of_the_directions(tmp_path):
    path = write_sofa(tmp_path / "sphere.sofa", ALL_AROUND)
    head = hrir.find_heads(path)["sphere"]
    sphere = hrir.Head("s", "sphere", radius_m=0.0875)
    for azimuth in (-80, -30, 0, 20, 65):
        for elevation in (8, 40):  # in front and behind, where positions lie exactly
            ours, theirs = (np.fft.rfft(x.response(azimuth, elevation, 16000), 512, axis=0) for x in (head, sphere))
            band = slice(20, 200)
            np.testing.assert_allclose(np.abs(ours[band]), np.abs(theirs[band]), rtol=0.06, atol=0.02)
    # Cartesian positions, a delay of the left ear, receivers in the other order.
    azimuth, elevation = np.radians(ALL_AROUND).T
    flat = np.cos(elevation)
    other = write_sofa(
        tmp_path / "other.sofa", ALL_AROUND, swapped=True,
        SourcePosition=1.4 * np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], axis=1),
        ReceiverPosition=[[0, -0.09, 0], [0, 0.09, 0]], **{"Data.Delay": [[7.0, 7.0]]},
    )  # fmt: skip
    with h5py.File(other, "a") as file:
        file["SourcePosition"].attrs["Type"] = np.bytes_("cartesian")
    late = hrir.find_heads(other)["other"].responses(30, 48000)
    have = head.available()[hrir.AZIMUTHS.index(30)]
    np.testing.assert_array_equal(late[have][:, 7:], head.responses(30, 48000)[have])
    assert not late[:, :7].any()


def write_cipic(folder, name, radius=0.0875, rate=hrir.CIPIC_RATE_HZ, swapped=(), taps=(200, 200)):
    """A listener in the layout of CIPIC's wav edition; `swapped`: azimuths at which right is left."""
    for azimuth in hrir.AZIMUTHS:
        responses = hrir.sphere_responses(hrir.unit_vector(azimuth, hrir.ELEVATIONS), radius) / 2.5
        for e, ear in enumerate(hrir.EARS):
            path = folder / name / f"{'neg' if azimuth < 0 else ''}{abs(azimuth)}az{ear}.wav"
            write_pcm16(path, responses[:, : taps[e], 1 - e if azimuth in swapped else e], rate)
    return folder


def test_bad_heads_are_told_in_one_line(tmp_path):
    def refused(path):
        with pytest.raises(UserError) as error:
            hrir.find_heads(str(path))
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
        return str(error.value)

    assert "no such file" in refused(tmp_path / "nothing")
    assert "neither SOFA files nor folders" in refused(tmp_path)
    assert "ears are swapped" in refused(write_sofa(tmp_path / "swapped.sofa", ALL_AROUND, swapped=True))
    front = ALL_AROUND[ALL_AROUND[:, 0] == 0]
    assert "positions near 1 of 25 azimuths" in refused(write_sofa(tmp_path / "front.sofa", front))
    missing = {"SourcePosition": None}
    assert "without SourcePosition" in refused(write_sofa(tmp_path / "missing.sofa", ALL_AROUND, **missing))
    one = {"Data.IR": np.ones((len(ALL_AROUND), 1, 8))}
    assert "1 receivers" in refused(write_sofa(tmp_path / "one.sofa", ALL_AROUND, **one))
    (tmp_path / "text.sofa").write_text("no HDF5")
    assert "not a SOFA file" in refused(tmp_path / "text.sofa")
    for name, options, reason in (
        ("a", dict(swapped=hrir.AZIMUTHS), "neg80azleft.wav: at 20 of 20 lateral azimuths"),
        ("d", dict(swapped=range(-45, 46)), "neg45azleft.wav: at 14 of 20 lateral azimuths"),
        (
            "e",
            dict(swapped=[-80]),
            "neg80azleft.wav: at 1 of 20 lateral azimuths, -80 the first, the far ear is louder",
        ),
        ("f", dict(swapped=[30]), "30azleft.wav: at 1 of 20"),
        ("b", dict(rate=48000), "48000 Hz"),
        ("c", dict(taps=(200, 190)), "190 taps, the left ear has 200"),
    ):
        assert reason in refused(write_cipic(tmp_path / name, "subject03", **options))
    os.remove(write_cipic(tmp_path / "whole", "subject03") / "subject03" / "neg65azright.wav")
    assert "neg65azright.wav: no such file" in refused(tmp_path / "whole")
    os.remove(tmp_path / "whole" / "subject03" / "neg65azleft.wav")
    head = hrir.find_heads(str(tmp_path / "whole"))["subject03"]
    assert not head.available()[1].any() and head.available().sum() == 24 * 50
    with pytest.raises(UserError, match="neg65azleft.wav: no such file; .*--hrir"):
        head.response(-65, 8, RATE)
    sparse = write_sofa(tmp_path / "flat.sofa", ALL_AROUND[ALL_AROUND[:, 1] == 0])
    with pytest.raises(UserError, match="no position within 7.5 degrees of azimuth 30, elevation 45"):
        hrir.find_heads(sparse)["flat"].response(30, 16, RATE)


def test_listeners_of_the_sets(tmp_path):
    published = {f"subject{n}": hrir.Head(f"subject{n}", "cipic") for ns in hrir.CIPIC_SETS.values() for n in ns}
    split = hrir.split_heads(published)
    for name in SETS:
        assert {head.name[len("subject") :] for head in split[name]} == set(hrir.CIPIC_SETS[name])
    # Whatever the folders are called, and whoever is missing or there too.
    for form in ("{:02d}", "subject_{:03d}"):
        names = {form.format(hrir.cipic_number(name)) for name in sorted(published)[1:]} | {f"own{i}" for i in range(5)}
        split = hrir.split_heads({name: hrir.Head(name, "cipic") for name in names})
        for name in SETS:
            numbers = [hrir.cipic_number(head.name) for head in split[name]]
            assert set(numbers) - {None} <= set(map(int, hrir.CIPIC_SETS[name])) and None in numbers
        assert sum(map(len, split.values())) == len(names) == 49
    with pytest.raises(UserError, match="^cipic: all listeners are of CIPIC's sets cv and tt"):
        hrir.split_heads({n: hrir.Head(n, "cipic", f"cipic/{n}") for n in ("03", "12", "124")})
    spheres = hrir.find_heads()
    names = [{head.name for head in heads} for heads in hrir.split_heads(spheres).values()]
    assert set.union(*names) == spheres.keys() and sum(map(len, names)) == len(spheres) == 45
    one = hrir.find_heads(write_sofa(tmp_path / "one.sofa", ALL_AROUND))
    assert all(heads == list(one.values()) for heads in hrir.split_heads(one).values())


@pytest.mark.parametrize("reverb_s", [0.2, 0.9])
def test_rooms_decay_as_they_should(reverb_s):
    room = rooms.draw_room("a", reverb_s, hrir.find_heads()["sphere00"], 0)
    right, left = rooms.simulate(room, 70), rooms.simulate(room, -70)
    energy = np.cumsum(np.sum(right**2, axis=1)[::-1])[::-1]
    decay = 10 * np.log10(energy / energy[0])
    begin, end = (np.argmax(decay < level) for level in (-5, -30))
    assert 60 / 25 * (end - begin) / rooms.RATE_HZ == pytest.approx(reverb_s, rel=0.25)
    first = [np.argmax(np.abs(x) > 0.2 * np.abs(x).max(), axis=0) for x in (left, right)]
    assert first[0][0] < first[0][1] and first[1][1] < first[1][0]
    assert power_db(left[:80, 0]) > power_db(left[:80, 1]) + 2


# Mixtures -----------------------------------------------------------------------------------------


def test_manifest_and_wavs_agree(corpus, made, kind):
    folder = made(kind)
    places = {}
    for set_name, mode in ((s, m) for s in SETS for m in ("min", "max")):
        of_set = set_folder(folder, kind, set_name, RATE, mode)
        rows = read_manifest(of_set)
        assert len(rows) == COUNTS[f"{set_name}_mixtures"]
        places.setdefault(set_name, set()).update(row["place"] for row in rows)
        for row in rows:
            signals = signals_of(of_set, row["name"])
            assert {x.shape for x in signals.values()} == {(int(row["samples"]), 2)}
            assert max(np.abs(x).max() for x in signals.values()) == pytest.approx(float(row["peak"]), abs=1e-4)
            assert float(row["peak"]) <= 1 and row["wrapped"] == "0"
            numbers = range(1, 4 if kind == "3speakers" else 3)
            sources = [signals[f"s{c}"] for c in numbers]
            mixture = signals["mix" if "mix" in signals else "mix_clean"]
            np.testing.assert_allclose(mixture, sum(sources), atol=2 / 32768)
            assert len({row[f"s{c}_azimuth"] for c in numbers}) == len(numbers)
            assert len({row[f"s{c}_source"].split("/")[1] for c in numbers}) == len(numbers)
            for c, image in zip(numbers, sources):
                path = corpus / row[f"s{c}_source"]
                mono = resample(read_mono(path), soundfile.info(path).samplerate, RATE)
                mono = mono[: len(image)] * float(row[f"s{c}_gain"]) * float(row["mixture_gain"])
                # The mean power of both ears is that of the utterance.
                assert np.sum(image**2) / 2 == pytest.approx(np.sum(mono**2), rel=1e-3)
                left, right = np.sum(image**2, axis=0)
                assert 10 * np.log10(left / right) == pytest.approx(float(row[f"s{c}_ild_db"]), abs=0.02)
                if kind != "reverb" and abs(azimuth := int(row[f"s{c}_azimuth"])) >= 10:
                    assert (left > right) == (azimuth < 0)
            if kind == "noise":
                np.testing.assert_allclose(signals["mix_both"], signals["mix_clean"] + signals["noise"], atol=1e-6)
                np.testing.assert_allclose(signals["mix_single"], signals["s1"] + signals["noise"], atol=1e-6)
                np.testing.assert_array_equal(*signals["noise"].T)
    for first, second in (("tr", "cv"), ("tr", "tt"), ("cv", "tt")):
        assert not places[first] & places[second]


def test_workers_and_kills_change_nothing(corpus, made, tmp_path):
    """Two processes, killed early, then one: the files are those of a run that nothing disturbed."""
    flags = flags_for(corpus, tmp_path / "killed", modes="min,max", num_workers=2)
    del flags["corpus_flags"]
    command = [sys.executable, binaural_mix.__file__, *[f"--{key}={value}" for key, value in flags.items()]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not list((tmp_path / "killed").rglob("records/*/[!.]*.json")):
            assert process.poll() is None
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    flags = flags_for(corpus, tmp_path / "killed", modes="min,max")
    succeed(tmp_path, SCRIPT, **flags)
    wanted = contents(made("2speakers") / "2speakers")
    assert contents(tmp_path / "killed" / "2speakers") == wanted
    lost = next((tmp_path / "killed").rglob("s1/*.wav"))
    lost.unlink()
    assert " 1 of them made now" in succeed(tmp_path, SCRIPT, **flags)
    assert contents(tmp_path / "killed" / "2speakers") == wanted
    assert "--overwrite" in refuse(tmp_path, SCRIPT, **flags | dict(seed=3))
    # A rate is added beside what is there.
    succeed(tmp_path, SCRIPT, **flags | dict(sample_rates="8000,16000", sets="cv"))
    after = contents(tmp_path / "killed" / "2speakers")
    assert {name: after[name] for name in wanted} == wanted and any("wav16k" in name for name in after)


def test_rooms_have_two_ears_unless_in_parity(tmp_path):
    """The original's right ear hears the responses of both."""
    rng = np.random.default_rng(0)
    source, responses = rng.standard_normal(3000), rng.standard_normal((400, 2)) * 0.99 ** np.arange(400)[:, None]
    ours, factor = binaural.render(source, responses, room=True)
    for ear in range(2):
        np.testing.assert_allclose(ours[:, ear], factor * np.convolve(source, responses[:, ear])[:3000], atol=1e-9)
    theirs, factor = binaural.render(source, responses, room=True, parity=True)
    np.testing.assert_allclose(theirs[:, 1], factor * np.convolve(source, responses.sum(axis=1))[199:3199], atol=1e-9)
    assert binaural.truncate16(np.array([1.9, -1.9, 32767.9, 32768, -32769, 70000.0])) == (
        pytest.approx([1, -1, 32767, -32768, 32767, 4464]),
        3,
    )


def test_loud_speech_is_scaled_down_and_wraps_only_in_parity(tmp_path):
    write_pcm16(tmp_path / "a.wav", np.clip(8 * voice(0, 0, 0.4), -1, 1), RATE)
    write_pcm16(tmp_path / "b.wav", np.clip(8 * voice(1, 0, 0.4), -1, 1), RATE)
    head = hrir.find_heads()["sphere00"]
    scene = binaural_scenes.Scene("x", ("a.wav", "b.wav"), head, (-80, -65), (8, 40), gains={(RATE, "min"): (2.0, 2.0)})
    said = {}
    for parity in (False, True):
        tree = binaural_mix.BinauralTree(tmp_path, tmp_path / str(parity), parity=parity)
        with contextlib.redirect_stdout(io.StringIO()):
            said[parity] = binaural_mix.make_binaural(tree, {"tt": [scene]}, {}, num_workers=1)
        signals = signals_of(tree.set_folder("tt", RATE, "min"), "x")
        exact, row = binaural_mix.mix_scene(tree, scene, RATE, "min")
        error = np.abs(signals["mix"] - exact["mix"]).max()
        assert error > 1 if parity else error < 1 / 32768
        assert (row["mixture_gain"] == 1) == parity
    assert "wrap around" in said[True][1] and "scaled down" in said[False][1]


def test_fields_of_noise():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 400000))
    same, independent, diffuse = (
        binaural.spread(first, second, 16000, field) for field in ("same", "independent", "diffuse")
    )
    np.testing.assert_array_equal(*same.T)
    assert abs(np.corrcoef(independent.T)[0, 1]) < 0.01
    frequency, cross = csd(*diffuse.T, fs=16000, nperseg=512)
    coherence = np.real(cross) / np.sqrt(np.prod(welch(diffuse.T, 16000, nperseg=512)[1], axis=0))
    k = 2 * np.pi * frequency[1:] / 343 * 0.175
    np.testing.assert_allclose(coherence[1:], np.sin(k) / k, atol=0.12)
    for kind in noises.KINDS:
        x = noises.synthesise(kind, 8000, RATE, np.random.default_rng(1), [voice(i, 0, 0.5) for i in range(3)])
        assert x.shape == (8000,) and np.mean(x**2) == pytest.approx(1)


def test_recorded_noise_stays_in_its_set(corpus, tmp_path):
    rng = np.random.default_rng(0)
    for set_name in SETS:
        path = tmp_path / "recorded" / set_name / "n.flac"
        path.parent.mkdir(parents=True)
        soundfile.write(path, 0.1 * rng.standard_normal(6 * 22050), 22050)
    succeed(tmp_path, SCRIPT, **flags_for(
        corpus, tmp_path, kind="noise", noise_folder=tmp_path / "recorded", noise_field="diffuse", snr_db="5,5"
    ))  # fmt: skip
    for set_name in SETS:
        folder = set_folder(tmp_path, "noise", set_name)
        for row in read_manifest(folder):
            assert row["noise_source"] == str(tmp_path / "recorded" / set_name / "n.flac")
            signals = signals_of(folder, row["name"])
            gain = float(row["s1_gain"]) * float(row["mixture_gain"])
            level_db = 10 * np.log10(measure_level(corpus / row["s1_source"]) * gain**2)
            assert level_db - power_db(signals["noise"]) == pytest.approx(5, abs=0.7)
            assert np.corrcoef(signals["noise"].T)[0, 1] < 0.9
    short = tmp_path / "short"
    for name in "abc":
        write_pcm16(short / f"{name}.wav", rng.uniform(-0.1, 0.1, 4000), RATE)
    line = refuse(tmp_path, SCRIPT, **flags_for(corpus, tmp_path / "other", kind="noise", noise_folder=short))
    assert "0.5 s" in line and "longer recordings" in line


def write_published(folder, corpus):
    """Lists in the form of Binaural-WSJ0Mix's; gives {set: [row of the list]}."""

    def write(name, rows):
        with open(folder / name, "w", newline="") as file:
            csv.writer(file).writerows(rows)

    lists = {}
    for set_name in SETS:
        talkers = find_utterances(corpus, 0, {})[set_name]
        paths = [some[0] for some in talkers.values()][:2]
        name = "_".join(f"{os.path.basename(path)[:-4]}_1" for path in paths) + ".wav"
        lists[set_name] = [name, *(f"wsj0/{path}" for path in paths)]
        write(f"mix_2_spk_filenames_{set_name}.csv", [["output_filename", "s1_path", "s2_path"], lists[set_name]])
        head = ["utterance_id", "subject"]
        for c in (1, 2):
            head += [f"azimuth{c}", f"elevation{c}", f"elevation_index{c}"]
        write(f"hrtf_meta_{set_name}.csv", [head, [name, "subject03", -30, 0, 8, 45, 23, 12]])
        np.savez(
            folder / f"scaling_{set_name}.npz",
            utterance_id=np.array([name], object), speech_start_sample_16k=np.array([1]),
            **{f"scaling_{what}_8k_min": np.ones((1, 2)[:size]) for what, size in
               (("wsjmix", 2), ("wham_speech", 1), ("wham_noise", 1))},
        )  # fmt: skip
    return lists


def test_published_lists(corpus, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "wsj0").symlink_to(corpus)
    (tmp_path / "lists").mkdir()
    lists = write_published(tmp_path / "lists", corpus)
    write_cipic(tmp_path / "cipic", "subject03")
    flags = dict(
        wsj0_root=tmp_path / "root", metadata_folder=tmp_path / "lists", hrir=tmp_path / "cipic", corpus_flags=False,
        output_folder=tmp_path, num_workers=1,
    )  # fmt: skip
    succeed(tmp_path, SCRIPT, "--parity", **flags)
    _, first, second = lists["cv"]
    stems = [os.path.basename(path)[:-4] for path in (first, second)]
    name = f"subject03_{stems[0]}_-30_0_{stems[1]}_45_23"
    signals = signals_of(set_folder(tmp_path, "2speakers", "cv"), name)
    response = hrir.find_heads(str(tmp_path / "cipic"))["subject03"].response(-30, 8, RATE)
    source = read_mono(tmp_path / "root" / first)[: len(signals["s1"])].astype(float)
    expected = np.stack([np.convolve(source, h, "same") for h in response.T], axis=1)
    expected *= np.sqrt(2 * np.sum(source**2) / np.sum(expected**2))
    np.testing.assert_allclose(signals["s1"], expected, atol=1 / 32768)
    for room in (room for names in binaural_scenes.DEMAND.values() for room in names):
        write_pcm16(tmp_path / "demand" / room / "ch01.wav", np.full(90000, 100, np.int16), 16000)
    line = refuse(tmp_path, SCRIPT, **flags, kind="noise", noise_folder=tmp_path / "demand")
    assert "the lists are not the published ones" in line
    assert "--hrir is missing" in refuse(tmp_path, SCRIPT, **{**flags, "hrir": ""})
    os.rename(tmp_path / "cipic" / "subject03", tmp_path / "cipic" / "03")
    succeed(tmp_path, SCRIPT, "--parity", **flags | dict(output_folder=tmp_path / "named"))
    os.remove(tmp_path / "lists" / "scaling_tt.npz")
    assert "scaling_tt.npz" in refuse(tmp_path, SCRIPT, **flags)


def test_missing_responses_of_rooms_and_sets_without_listeners_are_told(corpus, tmp_path):
    for t in {t for times in rooms.REVERB_TIMES.values() for t in times}:
        folder = tmp_path / "brir" / rooms.time_name(t)
        for azimuth in rooms.AZIMUTHS_IN_ROOMS:
            write_pcm16(folder / f"CATT_{folder.name}_{azimuth}.wav", np.eye(300, 2), 16000)
    flags = flags_for(corpus, tmp_path / "out", kind="reverb", brir_folder=tmp_path / "brir")
    place = tmp_path / "brir" / "0_5s"  # the room of cv
    aside = [path.rename(tmp_path / path.name) for path in place.iterdir()]
    line = refuse(tmp_path, SCRIPT, **flags)
    assert line.startswith(f"error: {place}/CATT_0_5s_") and "no such file" in line and "--brir_folder" in line
    for path in aside:
        path.rename(place / path.name)
    succeed(tmp_path, SCRIPT, **flags)
    for number in ("08", "09", "124"):
        write_cipic(tmp_path / "cipic", number)
    flags = flags_for(corpus, tmp_path / "cipic_out", hrir=tmp_path / "cipic")
    assert "no listener of CIPIC's set cv" in refuse(tmp_path, SCRIPT, **flags)
    succeed(tmp_path, SCRIPT, **flags | dict(cv_mixtures=0))
    for set_name, subjects in (("tr", {"08", "09"}), ("tt", {"124"})):
        rows = read_manifest(set_folder(tmp_path / "cipic_out", "2speakers", set_name))
        assert {row["place"] for row in rows} <= subjects


def test_unusable_utterances_are_left_out_by_name(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "corpus")
    write_pcm16(tmp_path / "corpus" / "tr" / "tr0" / "short.wav", voice(0, 0, 0.1), RATE)
    write_pcm16(tmp_path / "corpus" / "tr" / "tr1" / "stereo.wav", np.zeros((9000, 2)), RATE)
    (tmp_path / "corpus" / "tr" / "tr2" / "text.wav").write_text("no audio")
    out = succeed(tmp_path, SCRIPT, **flags_for(tmp_path / "corpus", tmp_path, tr_mixtures=30))
    for name, reason in (("short", "800 samples"), ("stereo", "2 channels"), ("text", "not an audio file")):
        assert [reason in line for line in out.splitlines() if f"{name}.wav" in line] == [True]
    assert len(read_manifest(set_folder(tmp_path, "2speakers", "tr"))) == 30
    assert "--corpus_root" in refuse(tmp_path, SCRIPT, output_folder=tmp_path, corpus_flags=False)
    line = refuse(tmp_path, SCRIPT, **flags_for(corpus, tmp_path / "b", kind="noise", snr_db="3"))
    assert "2 numbers are needed" in line


# Sets and batches ---------------------------------------------------------------------------------


ALL = Augmentation(shift=(-500, 500), drop_chunks=True, drop_bands=True)


@pytest.fixture(scope="module")
def pool(corpus):
    bank = binaural_tasnet.head_bank(list(hrir.find_heads().values())[:2], RATE)
    return binaural_tasnet.binaural_pool(corpus, find_utterances(corpus, 0, {})["tr"], bank, RATE)


@pytest.fixture(params=["set", "mixed"])
def pipeline(request, made, pool):
    """epoch, seed, skip, share -> batches of 2, with all augmentations."""
    given = dict(seed=5, epoch=0, segment_samples=3000, augmentation=ALL)
    if request.param == "mixed":
        return lambda **named: binaural_tasnet.mixed_batches(pool, 2, 3, **given | named)
    some = binaural_tasnet.binaural_set(set_folder(made("2speakers"), "2speakers", "tr"), RATE)
    return lambda **named: binaural_tasnet.training_batches(some, 2, **given | named)


def test_an_epoch_depends_on_seed_and_epoch_alone(pipeline):
    whole = listed(pipeline(epoch=1))
    for other in (listed(pipeline(epoch=2)), listed(pipeline(epoch=1, seed=6))):
        assert any((a["mixture"] != b["mixture"]).any() for a, b in zip(whole, other))
    first, second = (listed(pipeline(epoch=1, skip=1, share=common.Share(2, i, 1))) for i in range(2))
    joined = [{key: np.concatenate([x[key], y[key]]) for key in x} for x, y in zip(first, second, strict=True)]
    assert_same_batches(joined, whole[1:])


def test_batches_are_what_they_say(pipeline):
    batches = listed(pipeline())
    assert len(batches) == 3
    for batch in batches:
        assert {key: value.dtype.name for key, value in batch.items()} == dict(
            mixture="float32", sources="float32", samples="int32", index="int32"
        )
        assert batch["mixture"].shape == (2, 3000, 2) and batch["sources"].shape == (2, 2, 3000, 2)
        specs = common.free_lengths(batch)
        assert specs["sources"].shape.as_list() == [None, 2, None, 2]
        assert specs["mixture"].shape.as_list() == [None, None, 2]
        assert (batch["samples"] == 3000).all() and np.abs(batch["sources"]).max() > 0.01


def test_sets_are_read_as_written(made, tmp_path):
    folder = set_folder(made("2speakers"), "2speakers", "tr")
    some = binaural_tasnet.binaural_set(folder, RATE)
    names = [row["name"] for row in read_manifest(folder)]
    batches = listed(binaural_tasnet.evaluate(some))
    for name, batch in zip(names, batches, strict=True):
        np.testing.assert_array_equal(batch["mixture"][0], read_stereo(f"{folder}/mix/{name}.wav"))
        for c in range(2):
            np.testing.assert_array_equal(batch["sources"][0, c], read_stereo(f"{folder}/s{c + 1}/{name}.wav"))
    padded = listed(binaural_tasnet.evaluation_batches(some, 4))
    assert [row for batch in padded for row in batch["index"]] == [0, 1, 2, 3, 4, 5, -1, -1]
    for batch, row in ((padded[0], 1), (padded[1], 0)):
        samples = batch["samples"][row]
        np.testing.assert_array_equal(batch["mixture"][row, :samples], batches[batch["index"][row]]["mixture"][0])
        assert not batch["sources"][row, :, samples:].any()
    crops = listed(binaural_tasnet.training_batches(some.some([2, 4]), 1, 0, 0, segment_samples=2000))
    for crop in crops:
        whole = batches[[2, 4][crop["index"][0]]]
        mixture = whole["mixture"][0]
        (start,) = [s for s in range(len(mixture) - 1999) if np.array_equal(mixture[s : s + 2000], crop["mixture"][0])]
        np.testing.assert_array_equal(crop["sources"][0], whole["sources"][0, :, start : start + 2000])
    # Without our manifest, as a published set, with other formats.
    for kind in ("mix", "s1", "s2"):
        for i, name in enumerate(names[:3]):
            samples = read_stereo(f"{folder}/{kind}/{name}.wav")
            path = tmp_path / "a" / "b" / "c" / "tr" / kind / f"{i}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            if i == 1:
                write_float(path, samples, RATE)
            else:
                soundfile.write(path, samples, RATE, "PCM_24" if i else "PCM_16")
    other = listed(binaural_tasnet.evaluate(binaural_tasnet.binaural_set(tmp_path / "a" / "b" / "c" / "tr", RATE)))
    assert_same_batches(other, batches[:3])


def test_bad_sets_are_told_in_one_line(made, tmp_path):
    def refused(**named):
        with pytest.raises(UserError) as error:
            binaural_tasnet.binaural_set(tmp_path / "set", **dict(sample_rate=RATE) | named)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "no mix/" in refused()
    rng = np.random.default_rng(0)
    for kind in ("mix", "s1", "s2"):
        write_pcm16(tmp_path / "set" / kind / "a.wav", rng.uniform(-0.1, 0.1, (1100, 2)), RATE)
    some = binaural_tasnet.binaural_set(tmp_path / "set", RATE)
    assert len(some) == 1
    assert "8000 Hz, 16000 Hz is needed" in refused(sample_rate=16000)
    assert "2 talkers, 3 are needed" in refused(talkers=3)
    write_pcm16(tmp_path / "set" / "s2" / "a.wav", np.zeros((1090, 2)), RATE)
    line = refused()
    assert "s2/a.wav: 1090 samples" in line and "has 1100" in line
    with pytest.raises(UserError, match="1090 samples"):
        some.check()
    write_pcm16(tmp_path / "set" / "s2" / "a.wav", np.zeros(1100), RATE)
    assert "1 channel, the two of a binaural recording" in refused()
    for kind in ("mix", "s1", "s2"):
        write_pcm16(tmp_path / "set" / kind / "a.wav", np.zeros((1039, 2)), RATE)
    assert "1039 samples, 1040 are needed" in refused()
    os.remove(tmp_path / "set" / "s1" / "a.wav")
    assert "s1/a.wav: no such file" in refused()


# Augmentation -------------------------------------------------------------------------------------


def test_speed_is_what_it_says():
    """A tone at 400 Hz comes out at 400 Hz times the speed, and its length fits."""
    time_s = np.arange(8000) / RATE
    tone = np.stack([np.sin(2 * np.pi * 400 * time_s), np.cos(2 * np.pi * 400 * time_s)], axis=1).astype(np.float32)
    for speed in (80, 95, 100, 105):
        ours = augment.change_speed(tf.constant(tone), speed, RATE).numpy()
        assert len(ours) == augment.speed_samples(8000, speed, RATE)
        assert len(ours) == pytest.approx(800000 / speed, abs=1)
        place = np.arange(100, len(ours) - 100)
        ratio = RATE / round(RATE * 100 / speed)
        phase = 2 * np.pi * 400 * ratio * place / RATE
        np.testing.assert_allclose(ours[100:-100], np.stack([np.sin(phase), np.cos(phase)], axis=1), atol=2e-3)
    assert sum(x.nbytes for x in augment.speed_filter(95, RATE)) < 1e6


def test_mixtures_are_the_sum_of_changed_sources(made):
    some = binaural_tasnet.binaural_set(set_folder(made("noise"), "noise", "tr"), RATE)
    folder = os.path.join(set_folder(made("noise"), "noise", "tr"), "noise")
    noise = {name: read_stereo(os.path.join(folder, name + ".wav")) for name in some.names}
    for batch in listed(binaural_tasnet.training_batches(some, 1, 0, 0, augmentation=Augmentation(shift=(-9, 9)))):
        samples = batch["samples"][0]
        assert samples <= some.samples[batch["index"][0]]
        rest = batch["mixture"][0] - batch["sources"][0].sum(axis=0)
        np.testing.assert_allclose(rest, noise[some.names[batch["index"][0]]][:samples], atol=1e-5)
    shift_alone = Augmentation(speeds=(), shift=(3, 4))
    plain = {int(b["index"][0]): b for b in listed(binaural_tasnet.evaluate(some))}
    for parity in (False, True):
        given = dataclasses.replace(shift_alone, parity=parity)
        for batch in listed(binaural_tasnet.training_batches(some, 1, 0, 0, augmentation=given)):
            whole = plain[int(batch["index"][0])]["sources"][0]
            np.testing.assert_array_equal(batch["sources"][0], whole if parity else np.roll(whole, 3, axis=1))


def test_bands_and_chunks_are_taken_from_both_ears():
    """A tone in a dropped band goes, one outside stays; the ears are kept apart."""
    place = np.arange(8000)
    tones = np.stack([np.sin(np.pi * 0.43 * place), np.sin(np.pi * 0.1 * place)], axis=1).astype(np.float32)
    ours = augment.drop_bands(tf.constant(tones), augment.notches([0.4])).numpy()[200:-200]
    assert power_db(ours[:, 0]) < power_db(tones[:, 0]) - 6
    assert power_db(ours[:, 1]) == pytest.approx(power_db(tones[:, 1]), abs=0.5)
    assert np.isfinite(augment.notch(0.0)).all()
    dropped = augment.drop_chunks(tf.constant(tones), [10, 50, 7990], [20, 0, 100]).numpy()
    gone = ~dropped.any(axis=1)
    assert gone[10:30].all() and gone[7990:].all() and gone.sum() <= 31


# Dynamic mixing -----------------------------------------------------------------------------------


def test_dynamic_draws(pool):
    draws = binaural_tasnet.draw_dynamic(pool, 2000, 3000, 0, 0)
    # An error names these files, whatever the pieces of them are.
    of_others = binaural_tasnet.draw_dynamic(pool, 2000, 1, 0, 0, (5, 9))
    np.testing.assert_array_equal(of_others.files, draws.files)
    np.testing.assert_array_equal(of_others.noise, draws.noise)
    talkers = np.searchsorted(pool.first, draws.files, side="right") - 1
    assert (talkers[:, 0] != talkers[:, 1]).all() and len(np.unique(draws.files)) == 6
    azimuths = pool.bank.azimuth[draws.directions]
    assert (azimuths[:, 0] != azimuths[:, 1]).all() and len(np.unique(azimuths)) == 25
    assert len(np.unique(draws.directions)) > 1000 and set(draws.place) == {0, 1}
    assert (draws.starts + draws.samples[:, None] <= pool.files.samples[draws.files]).all()
    assert draws.gains_db[:, 0].mean() == pytest.approx(-27.43, abs=0.3)
    assert (draws.gains_db[:, 1] - draws.gains_db[:, 0]).mean() == pytest.approx(-2.51, abs=0.3)


@pytest.mark.parametrize("taps, lead", [(37, None), (300, None), (300, 0)])
def test_dynamic_mixtures_are_those_of_the_reference_arithmetic(taps, lead):
    rng = np.random.default_rng(0)
    sources = np.stack([voice(talker, 0, 0.3) for talker in range(2)])
    responses = rng.standard_normal((2, taps, 2)).astype(np.float32) * 0.97 ** np.arange(taps)[:, None].astype("f4")
    images, noise = binaural_tasnet.mix_dynamically(
        tf.constant(sources), tf.constant([-25.0, -30.0]), tf.constant(responses), lead
    )
    assert noise is None
    if lead is None:
        np.testing.assert_allclose(images, binaural.mix_dynamically(sources, [-25, -30], responses)[1], atol=2e-5)
    for image, source, response in zip(images.numpy(), sources, responses):
        expected = binaural.convolve(source, response, lead)
        expected *= np.linalg.norm(image) / np.linalg.norm(expected)
        np.testing.assert_allclose(image, expected, atol=2e-5)
    given = tf.constant(rng.standard_normal(sources.shape[1]), tf.float32)
    images, noise = binaural_tasnet.mix_dynamically(
        tf.constant(sources), tf.constant([-25.0, -30.0]), tf.constant(responses), lead, given, 6.0
    )
    assert power_db(images[0]) - power_db(noise) == pytest.approx(6, abs=0.01)
    assert np.abs(np.sum(images, axis=0) + noise).max() <= 0.9001


def test_dynamic_mixing_trains_on_no_talker_of_the_other_sets(tmp_path):
    """Whatever the seed of the training; a corpus that talkers were added to since is divided in another way."""

    def say(talkers):
        for talker in talkers:
            write_pcm16(tmp_path / "talkers" / talker / f"{talker}-0.wav", voice(int(talker[1:]), 0, 0.2), RATE)

    say(f"t{number}" for number in range(20))
    succeed(tmp_path, SCRIPT, **flags_for(
        tmp_path / "talkers", tmp_path, sets="cv,tt", cv_mixtures=1, tt_mixtures=1, seed=5, num_workers=1
    ))  # fmt: skip
    folders = [set_folder(tmp_path, "2speakers", name) for name in ("cv", "tt")]
    heard = {row[f"s{c}_source"].split("/")[0] for folder in folders for row in read_manifest(folder) for c in (1, 2)}
    talkers, seed = training_talkers(tmp_path / "talkers", folders, 1)
    assert len(talkers) == 16 and len(heard) == 4 and not heard & set(talkers) and seed == 5
    say(f"s{number}" for number in range(20))
    with pytest.raises(UserError, match="2speakers.*of it would be trained on too"):
        training_talkers(tmp_path / "talkers", folders, 1)


def test_dynamic_mixing_with_published_lists_takes_all_training_talkers(tmp_path, capsys):
    """As in WSJ0: cv has the talkers of tr, other utterances; tt has talkers of its own, in another folder."""
    for below, talkers in {"si_tr_s": ("011", "01a", "02b"), "si_et_05": ("440", "441")}.items():
        for talker in talkers:
            for k in range(3):
                path = tmp_path / "wsj0" / below / talker / f"{talker}c020{k}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    folders = [set_folder(tmp_path / "sets", "2speakers", name) for name in ("cv", "tt")]

    def list_sources(folder, *paths):
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "manifest.csv"), "w", newline="") as file:
            csv.writer(file).writerows([["name", "s1_source", "s2_source"], ["x", *paths]])

    list_sources(folders[0], "wsj0/si_tr_s/011/011c0200.wav", "wsj0/si_tr_s/01a/01ac0201.wav")
    list_sources(folders[1], "wsj0/si_et_05/440/440c0200.wav", "wsj0/si_et_05/441/441c0200.wav")
    (tmp_path / "sets" / "2speakers" / "settings.json").write_text('{"metadata": 1, "seed": 5}')
    talkers, seed = training_talkers(str(tmp_path / "wsj0" / "si_tr_s"), folders, 1)
    assert {talker: len(paths) for talker, paths in talkers.items()} == {"011": 2, "01a": 2, "02b": 3} and seed == 5
    assert "011/011c0200.wav" not in talkers["011"] and "01a/01ac0201.wav" not in talkers["01a"]
    (line,) = capsys.readouterr().out.splitlines()
    assert "left out 0 of 3 talkers and 2 utterances" in line
    for corpus_folder, reason in (
        (tmp_path / "wsj0" / "si_et_05", "all talkers are in cv or tt; .*wsj0/si_tr_s"),
        (tmp_path / "wsj0", "si_.*: not the folder of one talker"),
        (tmp_path, "wsj0: not the folder of one talker"),
    ):
        with pytest.raises(UserError, match=f"^{corpus_folder}.*{reason}"):
            training_talkers(str(corpus_folder), folders, 1)
    # All of WSJ0 in one folder: those of tt go; so do those of cv if it has talkers of its own.
    shutil.copytree(tmp_path / "wsj0" / "si_tr_s", tmp_path / "flat")
    shutil.copytree(tmp_path / "wsj0" / "si_et_05", tmp_path / "flat", dirs_exist_ok=True)
    assert training_talkers(str(tmp_path / "flat"), folders)[0].keys() == {"011", "01a", "02b"}
    list_sources(folders[0], "wsj0/si_dt_05/02b/02bc0200.wav", "wsj0/si_dt_05/052/052c0200.wav")
    assert training_talkers(str(tmp_path / "flat"), folders)[0].keys() == {"011", "01a"}
    assert "left out 3 of 5 talkers" in capsys.readouterr().out.splitlines()[-1]


def test_noise_and_rooms_made_for_dynamic_mixing(corpus, tmp_path):
    speech = [str(path) for path in sorted((corpus / "tr").rglob("*.wav"))]
    paths = noises.write_recordings(str(tmp_path), speech, RATE, per_kind=1, seconds=1)
    first = contents(tmp_path)
    os.remove(paths[-1])
    assert noises.write_recordings(str(tmp_path), speech, RATE, per_kind=1, seconds=1) == paths
    assert contents(tmp_path) == first and len(first) == len(noises.KINDS)
    for path in paths:
        samples = soundfile.read(path)[0]
        assert samples.shape == (RATE,) and np.abs(samples).max() == pytest.approx(0.9, abs=1e-3)
    heads = list(hrir.find_heads().values())
    all_rooms = rooms.draw_rooms("tr", heads, 0)
    few = rooms.draw_rooms("tr", heads, 0, per_time=2)
    assert set(few) < set(all_rooms) and len(few) == 2 * len(rooms.REVERB_TIMES["tr"])
    assert [room.reverb_s for room in few] == [t for t in rooms.REVERB_TIMES["tr"] for _ in range(2)]


def test_dynamic_mixing_in_rooms_and_with_noise(corpus, tmp_path):
    head = hrir.find_heads()["sphere00"]
    some = [rooms.draw_room(f"r{i}", 0.1, head, 0) for i in range(2)]
    write_pcm16(tmp_path / "noise.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 2000), RATE)
    bank = binaural_tasnet.room_bank(some, RATE, num_workers=1)
    pool = binaural_tasnet.binaural_pool(
        corpus, find_utterances(corpus, 0, {})["tr"], bank, RATE, noises=[str(tmp_path / "noise.wav")]
    )
    for augmentation in (binaural_tasnet.NONE, Augmentation()):
        for batch in listed(
            binaural_tasnet.mixed_batches(pool, 2, 2, 3000, 0, 0, augmentation=augmentation, snr_db=(3, 3))
        ):
            assert batch["mixture"].shape == (2, 3000, 2)
            rest = batch["mixture"] - batch["sources"].sum(axis=1)
            # The noise is shorter than the mixture, and ends in silence.
            assert rest[:, :1500].std() > 0.001 and np.abs(rest[:, 2200:]).max() < 1e-5
    with pytest.raises(UserError, match="3 talkers, dynamic mixing needs 4"):
        binaural_tasnet.binaural_pool(corpus, find_utterances(corpus, 0, {})["tr"], bank, RATE, talkers=4)
