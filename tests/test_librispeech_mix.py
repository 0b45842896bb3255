"""Triplets for target-speaker extraction: made from recordings, listed, and fed to training."""

import contextlib
import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyloudnorm
import pytest
import soundfile
from speech import assert_same_batches, listed, refuse, run, succeed, voice
from test_audio import write_as

from feat import librispeech_mix
from feat.base.files import UserError
from feat.batches import common, spex_plus
from feat.corpora import find, triplet_mixing, triplets
from feat.signals.audio import read_mono, read_pcm16, resample, resample_sinc, wav_info, write_pcm16

SCRIPT = "feat/librispeech_mix.py"
RATE = 8000
PER_TALKER = 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Six talkers: half have chapters with flac files, as LibriSpeech has, the others a flat folder of wavs."""
    folder = tmp_path_factory.mktemp("corpus")
    for talker in range(6):
        for k in range(PER_TALKER):
            samples = voice(talker, k, 2.5 + 0.3 * k, RATE)
            if talker % 2:
                path = folder / f"10{talker}" / f"7{k % 2}" / f"10{talker}-7{k % 2}-{k:04d}.flac"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, samples, RATE, subtype="PCM_16")
            else:
                write_pcm16(folder / f"10{talker}" / f"{k}.wav", samples, RATE)
    return folder


def flags_for(corpus, folder, **named):
    defaults = dict(sample_rate=RATE, audio_len=1, nfiles=12, num_workers=1)
    return dict(corpus_folder=corpus, output_folder=folder, corpus_flags=False) | defaults | named


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory):
    """A training set and a test set in the layout for evaluation."""
    folder = tmp_path_factory.mktemp("triplets")
    succeed(folder, SCRIPT, **flags_for(corpus, folder / "tr"))
    succeed(folder, SCRIPT, "--test", **flags_for(corpus, folder / "tt", layout="evaluation", nfiles=5))
    return folder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()}


def assert_same_contents(ours, theirs):
    ours, theirs = contents(ours), contents(theirs)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


def signals_of(folder, name, layout):
    paths = triplets.triplet_paths(folder, name, layout)
    return {kind: read_pcm16(path, RATE) / 32768 for kind, path in paths.items()}


@pytest.mark.parametrize("set_name, layout", [("tr", "part"), ("tt", "evaluation")])
def test_manifest_rebuilds_every_wav(corpus, made, set_name, layout):
    rows = librispeech_mix.read_manifest(made / set_name)
    assert {row["triplet"] for row in rows} == set(range(12 if set_name == "tr" else 5))
    meter = pyloudnorm.Meter(RATE)
    for row in rows:
        written, rebuilt = signals_of(made / set_name, row["name"], layout), librispeech_mix.rebuild(row, corpus, RATE)
        assert len(written["mixture"]) == len(written["target"]) == row["samples"]
        for kind, source in (("mixture", "mixture"), ("target", "target"), ("enrolment", "reference")):
            np.testing.assert_allclose(written[kind], rebuilt[source], atol=0.51 / 32768)
        target, noise = (np.sum(rebuilt[f"{name}_in_mixture"] ** 2) for name in ("target", "noise"))
        assert 10 * np.log10(target / noise) == pytest.approx(row["snr_db"], abs=1e-6)
        assert row["snr_db"] in ((0, 5) if set_name == "tr" else (0,))
        for kind in ("mixture", "target"):
            assert meter.integrated_loudness(written[kind]) == pytest.approx(-23, abs=0.05)
        assert row["target_source"] != row["reference_source"]
        talkers = {key: row[f"{key}_source"].split("/")[0] for key in ("target", "reference", "noise")}
        assert talkers["target"] == talkers["reference"] == row["target_speaker"] != talkers["noise"]


def test_training_segments_have_no_pauses(corpus, made):
    rows = librispeech_mix.read_manifest(made / "tr")
    assert all(row["samples"] == RATE for row in rows) and any(row["segment"] == 1 for row in rows)
    assert any(len(row["target_ranges"]) > 1 for row in rows)
    own = [row for row in rows if row["triplet"] == rows[0]["triplet"]]
    starts = [row["target_ranges"][0][0] for row in own]
    assert starts == sorted(starts) and len({row["reference_source"] for row in own}) == 1


def test_workers_and_later_triplets_change_nothing(corpus, made, tmp_path):
    succeed(tmp_path, SCRIPT, **flags_for(corpus, tmp_path / "two", num_workers=2), runner=run)
    assert_same_contents(tmp_path / "two", made / "tr")
    succeed(tmp_path, SCRIPT, **flags_for(corpus, tmp_path / "fewer", nfiles=4))
    rows = librispeech_mix.read_manifest(tmp_path / "fewer")
    assert rows == librispeech_mix.read_manifest(made / "tr")[: len(rows)]
    succeed(tmp_path, SCRIPT, **flags_for(corpus, tmp_path / "other", nfiles=4, seed=1))
    assert librispeech_mix.read_manifest(tmp_path / "other") != rows


def test_killed_and_started_again(corpus, made, tmp_path):
    folder = tmp_path / "killed"
    named = flags_for(corpus, folder)
    del named["corpus_flags"]
    command = [sys.executable, librispeech_mix.__file__, *[f"--{key}={value}" for key, value in named.items()]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not list(folder.glob("records/0*.json")):
            assert process.poll() is None
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (folder / "manifest.jsonl").exists()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("part/[!.]*.wav")}
    assert kept
    succeed(tmp_path, SCRIPT, **flags_for(corpus, folder))
    assert_same_contents(folder, made / "tr")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_lost_file_comes_back_and_other_settings_are_refused(corpus, made, tmp_path):
    flags = flags_for(corpus, tmp_path / "set", nfiles=4)
    succeed(tmp_path, SCRIPT, **flags)
    before = contents(tmp_path / "set")
    lost = next((tmp_path / "set" / "part").glob("*-target.wav"))
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "set" / "part").iterdir() if path != lost}
    lost.unlink()
    assert "1 triplets made now" in succeed(tmp_path, SCRIPT, **flags)
    assert contents(tmp_path / "set") == before
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert "--overwrite" in refuse(tmp_path, SCRIPT, **flags | dict(seed=3))
    assert contents(tmp_path / "set") == before


def test_a_cut_file_is_made_again(corpus, tmp_path):
    flags = flags_for(corpus, tmp_path / "set", nfiles=4)
    succeed(tmp_path, SCRIPT, **flags)
    before = contents(tmp_path / "set")
    first = min((tmp_path / "set" / "part").glob("*-mixed.wav"))
    for kind in ("mixed", "ref"):  # the reference is one file for all segments
        os.truncate(str(first).replace("mixed", kind), 1000)
    assert "1 triplets made now" in succeed(tmp_path, SCRIPT, **flags)
    assert contents(tmp_path / "set") == before


def test_no_folder_but_a_set_is_ever_emptied(corpus, tmp_path):
    folder = tmp_path / "corpus"
    for talker in ("100", "102"):
        shutil.copytree(corpus / talker, folder / talker)
    os.symlink(folder, tmp_path / "link")
    before = contents(folder)
    for output, said in (
        (folder, f"{folder}: is {folder}"),
        (tmp_path / "link", f"link: is {folder}"),
        (folder / "100" / "out", f"out: lies in {folder}"),
        (tmp_path, f"{tmp_path}: holds {folder}"),
    ):
        for flags in ([], ["--overwrite"]):
            assert said in refuse(tmp_path, SCRIPT, *flags, **flags_for(folder, output))
            assert contents(folder) == before
    (tmp_path / "mine").mkdir()
    for name, text in (("a.txt", "mine"), ("settings.json", '{"editor": "vi"}')):
        (tmp_path / "mine" / name).write_text(text)
        for flags in ([], ["--overwrite"]):
            line = refuse(tmp_path, SCRIPT, *flags, **flags_for(folder, tmp_path / "mine"))
            assert "holds files, but no settings.json" in line and "--overwrite" not in line
            assert (tmp_path / "mine" / "a.txt").read_text() == "mine"
    succeed(tmp_path, SCRIPT, **flags_for(folder, tmp_path / "set", nfiles=2))
    succeed(tmp_path, SCRIPT, "--overwrite", **flags_for(folder, tmp_path / "set", nfiles=1))
    assert contents(folder) == before


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_at_once(tmp_path, times):
    """Also a second one, while workers make what takes long; nothing half-written stays."""
    for talker in range(2):
        for k in range(2):
            write_pcm16(tmp_path / "c" / f"{talker}" / f"{k}.wav", np.tile(voice(talker, k, 20, 16000), 15), 16000)
    named = flags_for(tmp_path / "c", tmp_path / "set", nfiles=40, num_workers=2, sample_rate=16000)
    del named["corpus_flags"]
    command = [sys.executable, librispeech_mix.__file__, *[f"--{key}={value}" for key, value in named.items()]]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0,
        # What a shell starts in the background ignores it, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        while not list((tmp_path / "set").glob("part/*.wav")):
            assert process.poll() is None
            time.sleep(0.01)
        for _ in range(times):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.05)
        _, said = process.communicate(timeout=60)  # hangs otherwise
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert "stopped: what was finished is kept" in said and "Traceback" not in said
    assert process.returncode in (130, -signal.SIGINT)  # the second may come when Python is about to end
    assert not list((tmp_path / "set").rglob(".*.tmp*"))


def test_blanks_in_the_names_of_talkers(corpus, tmp_path):
    for talker, name in (("100", "John Doe 0"), ("102", "Jane_Doe\u00a01")):
        shutil.copytree(corpus / talker, tmp_path / "corpus" / name)
    succeed(tmp_path, SCRIPT, **flags_for(tmp_path / "corpus", tmp_path / "set", nfiles=2))
    for record in triplets.read_triplets(tmp_path / "set"):
        assert record.name.split() == [record.name] and record.speaker in ("John-Doe-0", "Jane-Doe-1")


def test_unusable_files_are_named_and_replaced(tmp_path):
    folder = tmp_path / "corpus"
    for talker in range(3):
        for k in range(2):
            write_pcm16(folder / f"t{talker}" / f"{k}.wav", voice(talker, k, 2.5), RATE)
    speech = voice(1, 5, 2.5)
    soundfile.write(folder / "t0" / "nan.wav", np.where(np.arange(len(speech)) == 9, np.nan, speech), RATE, "FLOAT")
    soundfile.write(folder / "t0" / "stereo.wav", np.stack([speech, speech], 1), RATE)
    soundfile.write(folder / "t1" / "silent.wav", np.zeros(20000), RATE)
    soundfile.write(folder / "t1" / "short.wav", speech[:2000], RATE)
    soundfile.write(folder / "t2" / "fast.wav", voice(2, 7, 2.5, 22050), 22050)
    (folder / "t2" / "missing.wav").symlink_to(folder / "nowhere.wav")
    (folder / "t2" / "text.wav").write_text("no audio")
    out = succeed(tmp_path, SCRIPT, **flags_for(folder, tmp_path / "set", nfiles=30))
    for name, reason in (
        ("t0/nan.wav", "NaN"),
        ("t0/stereo.wav", "2 channels"),
        ("t1/silent.wav", "silent"),
        ("t1/short.wav", "2000 samples are shorter than 0.4 s"),
        ("t2/missing.wav", "no such file"),
        ("t2/text.wav", "not an audio file"),
    ):
        (line,) = [line for line in out.splitlines() if name in line]
        assert line.startswith("skipped: ") and reason in line
    rows = librispeech_mix.read_manifest(tmp_path / "set")
    assert {row["triplet"] for row in rows} == set(range(30))
    used = {row[key] for row in rows for key in ("target_source", "noise_source", "reference_source")}
    assert used == {f"t{talker}/{k}.wav" for talker in range(3) for k in range(2)} | {"t2/fast.wav"}
    for path in (tmp_path / "set" / "part").glob("*.wav"):
        assert np.any(read_mono(path, RATE))
    # The original draws no other triplet in place of one that cannot be made.
    succeed(tmp_path, SCRIPT, "--parity", **flags_for(folder, tmp_path / "parity", nfiles=30))
    made = {row["triplet"] for row in librispeech_mix.read_manifest(tmp_path / "parity")}
    skipped = {row["triplet"] for row in librispeech_mix.read_manifest(tmp_path / "parity", "skipped.jsonl")}
    assert made and skipped and not made & skipped and made | skipped == set(range(30))


def test_corpora_and_flags_that_cannot_work(corpus, tmp_path):
    assert "--corpus_folder is missing" in refuse(tmp_path, SCRIPT, corpus_flags=False)
    assert "no such folder" in refuse(tmp_path, SCRIPT, **flags_for(tmp_path / "nothing", tmp_path / "set"))
    assert "two are needed" in refuse(tmp_path, SCRIPT, **flags_for(corpus, tmp_path / "set", pattern="*.mp3"))
    assert "numbers of dB" in refuse(tmp_path, SCRIPT, **flags_for(corpus, tmp_path / "set", snr_levels="loud"))
    assert "no triplet could be made" in refuse(
        tmp_path, SCRIPT, **flags_for(corpus, tmp_path / "set", audio_len=60, nfiles=2)
    )


def test_levels_of_the_original_and_mended(corpus, tmp_path):
    """The original leaves enrolments of its test sets as they are; otherwise they are at -23 LUFS."""
    for name, parity in (("parity", True), ("mended", False)):
        flags = flags_for(corpus, tmp_path / name, nfiles=3, parity=parity)
        succeed(tmp_path, SCRIPT, "--test", **flags)
        for row in librispeech_mix.read_manifest(tmp_path / name):
            source = soundfile.read(corpus / row["reference_source"])[0]
            enrolment = signals_of(tmp_path / name, row["name"], "part")["enrolment"]
            if parity:
                np.testing.assert_array_equal(enrolment, source)
            else:
                assert pyloudnorm.Meter(RATE).integrated_loudness(enrolment) == pytest.approx(-23, abs=0.05)


def test_nothing_clips_unless_in_parity():
    """Clicks have so little loudness that -23 LUFS is beyond full scale."""
    clicks = np.zeros((3, 3 * RATE))
    for i, row in enumerate(clicks):
        row[::400] = 0.5 + 0.1 * i
        row[7 * i + 5 :: 613] = -0.3
    for parity in (False, True):
        settings = triplet_mixing.MixSettings(RATE, None, 20, 1, test=True, parity=parity)
        reference, mixtures = triplet_mixing.make_triplet(*clicks, 0.0, settings)
        mixed = mixtures[None]
        peaks = [np.abs(signal).max() for signal in (mixed.mixture, mixed.target)]
        assert min(peaks) > 1 if parity else max(peaks) <= 1 and np.abs(reference.signal).max() <= 1
        np.testing.assert_allclose(mixed.target, mixed.target_gain * clicks[0])
        both = mixed.mixture_target_gain * clicks[0] + mixed.mixture_noise_gain * clicks[1]
        np.testing.assert_allclose(mixed.mixture, both)
    assert triplet_mixing.pcm16(np.array([2, -2, 0.99999, -1e-6]), parity=True).tolist() == [32767, -32768, 32767, -1]


def test_a_silent_segment_is_left_out_alone(tmp_path):
    """With pauses kept, the second second of every utterance is digital silence."""
    for talker in range(2):
        for k in range(2):
            samples = voice(talker, k, 3.5)
            samples[RATE : 2 * RATE] = 0
            write_pcm16(tmp_path / "corpus" / str(talker) / f"{k}.wav", samples, RATE)
    out = succeed(tmp_path, SCRIPT, **flags_for(tmp_path / "corpus", tmp_path / "set", nfiles=2, trim_db=0, vad_db=200))
    rows = librispeech_mix.read_manifest(tmp_path / "set")
    assert [(row["triplet"], row["segment"]) for row in rows] == [(0, 0), (0, 2), (1, 0), (1, 2)]
    assert "segment 1: the target is silent" in out


# Lists --------------------------------------------------------------------------------------------


def test_layouts_are_read_alike(made, tmp_path):
    """The same files as mix/, refs/, targets/ and by lists, two of them in other formats."""
    records = triplets.read_triplets(made / "tt")
    assert [triplet.label for triplet in records] == [
        triplets.speakers_of(records).index(triplet.speaker) for triplet in records
    ]
    plain = listed(spex_plus.evaluate(spex_plus.triplet_set(records, RATE)))
    lists = {name: [] for name in ("mix", "ref", "aux")}
    for i, (triplet, batch) in enumerate(zip(records, plain)):
        paths = (triplet.mixture, triplet.target, *triplet.enrolments)
        for (name, lines), path in zip(lists.items(), paths):
            target = path
            if i in (1, 2):  # other formats, with a second channel, which is not looked at
                target = str(tmp_path / (f"{name}.flac" if i == 1 else f"{name}.wav"))
                both = np.stack([read_mono(path), np.zeros(wav_info(path).frames)], axis=1)
                soundfile.write(target, both, RATE, "PCM_16", format="FLAC" if i == 1 else "WAVEX")
            lines.append(f"utta{i}_1.5_uttb{i}_-1.5_{triplet.speaker}{i} {target}\n")
        for kind, path in zip(("mixture", "target", "enrolment"), paths):
            np.testing.assert_array_equal(batch[kind][0], read_mono(path))
        assert batch["samples"] == len(batch["mixture"][0])
    for name, lines in lists.items():
        (tmp_path / f"{name}.scp").write_text("".join(lines))
    (tmp_path / "train.spk").write_text("".join(f"{s}\n" for s in triplets.speakers_of(records)))
    speakers = triplets.read_speakers(tmp_path / "train.spk")
    by_lists = spex_plus.triplet_set(triplets.read_triplets(tmp_path, speakers), RATE)
    assert_same_batches(listed(spex_plus.evaluate(by_lists)), plain)

    (tmp_path / "durations.txt").write_text("".join(f"utta{i} 0.75\nuttb{i} 9\n" for i in range(len(records))))
    durations = triplets.read_durations(tmp_path / "durations.txt")
    cut = spex_plus.triplet_set(triplets.read_triplets(tmp_path, speakers, durations=durations), RATE)
    for short, whole in zip(listed(spex_plus.evaluate(cut)), plain):
        assert short["samples"] == 6000
        for kind in ("mixture", "target"):
            np.testing.assert_array_equal(short[kind], whole[kind][:, :6000])
        np.testing.assert_array_equal(short["enrolment"], whole["enrolment"])

    # Lists of another machine, one of whose paths is relative.
    for name, lines in lists.items():
        moved = "".join(lines).replace(str(made), "/export/wsj0").replace(f"{tmp_path}/", "")
        (tmp_path / f"{name}.scp").write_text(moved)
    found = triplets.read_triplets(tmp_path, speakers, roots=[f"/export/wsj0/={made}", str(tmp_path)])
    assert_same_batches(listed(spex_plus.evaluate(spex_plus.triplet_set(found, RATE))), plain)


@pytest.mark.parametrize("seconds", ["nan", "inf", "0", "-1"])
def test_durations_that_are_none(tmp_path, seconds):
    (tmp_path / "durations").write_text(f"01ao0301 2.5\n02bo0302 {seconds}\n")
    with pytest.raises(UserError, match=f"durations: 02bo0302 has {seconds} seconds, more than 0 are needed"):
        triplets.read_durations(tmp_path / "durations")


def test_labels_of_another_set(made):
    train = triplets.speakers_of(triplets.read_triplets(made / "tr"))
    wanted = triplets.read_triplets(made / "tt")[0].speaker
    others = [speaker for speaker in train if speaker != wanted]
    labels = {t.speaker: t.label for t in triplets.read_triplets(made / "tt", speakers=others)}
    assert labels[wanted] == triplets.UNKNOWN and len(labels) > 1
    assert all(others[label] == speaker for speaker, label in labels.items() if label != triplets.UNKNOWN)
    triplets.require_labels(triplets.read_triplets(made / "tr"), len(train))
    with pytest.raises(UserError, match=f"there are {len(train) - 1} classes"):
        triplets.require_labels(triplets.read_triplets(made / "tr"), len(train) - 1)


def test_files_that_do_not_belong_together(made, tmp_path):
    with pytest.raises(UserError, match="no part/"):
        triplets.read_triplets(tmp_path)
    for kind in ("mixed", "target", "ref"):
        write_pcm16(tmp_path / "part" / f"1_2_000000_0-{kind}.wav", np.ones(9), RATE)
    write_pcm16(tmp_path / "part" / "1_2_000001_0-ref.wav", np.ones(9), RATE)
    with pytest.raises(UserError, match="1_2_000001_0-mixed.wav is missing"):
        triplets.read_triplets(tmp_path)
    for folder, name in (("mix", "1_2_x"), ("targets", "1_2_y"), ("refs", "2_1_z")):
        write_pcm16(tmp_path / "other" / folder / f"{name}.wav", np.ones(9), RATE)
    with pytest.raises(UserError, match="not of the same talkers"):
        triplets.read_triplets(tmp_path / "other")
    for folder in ("mix", "targets", "refs"):
        for name in ("1_2_x", "1_2_y"):
            write_pcm16(tmp_path / "lost" / folder / f"{name}.wav", np.ones(9), RATE)
    (tmp_path / "lost/targets/1_2_x.wav").unlink()
    with pytest.raises(UserError, match="mix/ 2, targets/ 1, refs/ 2; targets/ has none for 1_2_x"):
        triplets.read_triplets(tmp_path / "lost")
    for name, key in (("mix", "a_1_b_-1_c"), ("ref", "a_1_b_-1_c"), ("aux", "a_1_b_-1_d")):
        (tmp_path / f"{name}.scp").write_text(f"{key} x.wav\n")
    with pytest.raises(UserError, match="aux.scp, entry 1: other keys"):
        triplets.read_triplets(tmp_path)


def test_a_folder_is_looked_at_anew(corpus, tmp_path):
    """Nothing is remembered under the name of a folder."""
    succeed(tmp_path, SCRIPT, **flags_for(corpus, tmp_path / "set", nfiles=2))
    first = triplets.read_triplets(tmp_path / "set")
    succeed(tmp_path, SCRIPT, "--overwrite", **flags_for(corpus, tmp_path / "set", nfiles=3, seed=5))
    assert (
        {t.name for t in triplets.read_triplets(tmp_path / "set")}
        == {row["name"] for row in librispeech_mix.read_manifest(tmp_path / "set")}
        != {t.name for t in first}
    )


# Batches ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tt(made):
    return spex_plus.triplet_set(triplets.read_triplets(made / "tt"), RATE)


@pytest.fixture(scope="module")
def pool(corpus):
    return spex_plus.talker_pool(corpus, find.find_speakers(corpus), RATE)


@pytest.fixture(params=["crops", "shortest", "chunks", "mixed"])
def pipeline(request, tt, pool):
    """epoch, seed, skip, share -> batches of 2."""
    given = dict(seed=5, epoch=0)
    if request.param == "crops":
        return lambda **named: spex_plus.training_batches(
            tt, 2, segment_samples=9000, enrolment_samples=8000, gain_db=(-6, 6), **given | named
        )
    if request.param == "shortest":
        return lambda **named: spex_plus.shortest_batches(tt, 2, **given | named)
    if request.param == "chunks":
        return lambda **named: spex_plus.chunk_batches(tt, 8000, 4000, 2, **given | named)
    return lambda **named: spex_plus.mixed_batches(pool, 2, 4, 6000, **given | named)


def test_an_epoch_depends_on_seed_and_epoch_alone(pipeline):
    first = listed(pipeline(epoch=1))
    assert_same_batches(first, listed(pipeline(epoch=1)))
    for other in (listed(pipeline(epoch=2)), listed(pipeline(epoch=1, seed=6))):
        assert any(
            a["mixture"].shape != b["mixture"].shape or (a["mixture"] != b["mixture"]).any()
            for a, b in zip(first, other)
        )
    assert_same_batches(listed(pipeline(epoch=1, skip=1)), first[1:])
    assert listed(pipeline(epoch=1, skip=len(first))) == []


def test_shares_are_the_pieces_of_the_global_batch(pipeline):
    whole = listed(pipeline(epoch=1))
    first, second = (listed(pipeline(epoch=1, share=common.Share(2, i, 1))) for i in range(2))
    joined = [{key: np.concatenate([x[key], y[key]]) for key in x} for x, y in zip(first, second, strict=True)]
    assert_same_batches(joined, whole)


def test_batches_are_what_they_say(pipeline):
    batches = listed(pipeline())
    assert batches
    for batch in batches:
        assert {key: value.dtype.name for key, value in batch.items()} == dict.fromkeys(
            ("mixture", "target", "enrolment"), "float32"
        ) | dict.fromkeys(("samples", "enrolment_samples", "speaker", "index"), "int32")
        assert batch["mixture"].shape == batch["target"].shape
        assert batch["enrolment"].shape[1] == batch["enrolment_samples"].max()
        specs = common.free_lengths({key: np.asarray(value) for key, value in batch.items()})
        assert specs["enrolment"].shape.as_list() == [None, None]
        for mixture, samples in zip(batch["mixture"], batch["samples"]):
            assert np.any(mixture[:samples]) and not np.any(mixture[samples:])


def test_one_gain_for_mixture_and_target(tt):
    """What is not the target keeps its size relative to the target, whatever the gain."""
    plain = listed(spex_plus.training_batches(tt, 1, seed=0, epoch=0))
    louder = listed(spex_plus.training_batches(tt, 1, seed=0, epoch=0, gain_db=(6, 12)))
    gains = []
    for a, b in zip(plain, louder, strict=True):
        gain = np.linalg.norm(b["mixture"]) / np.linalg.norm(a["mixture"])
        np.testing.assert_allclose(b["target"], gain * a["target"], atol=1e-5)
        gains += [gain, np.linalg.norm(b["enrolment"]) / np.linalg.norm(a["enrolment"])]
    assert len(set(np.round(gains, 3))) == len(gains) and 1.99 < min(gains) < max(gains) < 4


def test_chunks_hold_the_whole_mixture(tt):
    taken = {}
    for batch in listed(spex_plus.chunk_batches(tt, 8000, 4000, 1, seed=0, epoch=0)):
        taken.setdefault(int(batch["index"][0]), []).append(batch)
    assert sum(map(len, taken.values())) == spex_plus.chunk_count(tt, 8000, 4000)
    for line, batches in taken.items():
        mixture, target = read_mono(tt.triplets[line].mixture), read_mono(tt.triplets[line].target)
        starts = []
        for batch in batches:
            chunk = batch["mixture"][0]
            (start,) = [s for s in range(len(mixture) - 7999) if np.array_equal(chunk, mixture[s : s + 8000])]
            np.testing.assert_array_equal(batch["target"][0], target[start : start + 8000])
            starts.append(start)
        assert set(np.diff(sorted(starts))) <= {4000} and min(starts) <= len(mixture) % 4000
    assert spex_plus.chunks(3999, 8000, 4000, random.Random(0)) == []


def test_evaluation_pads_to_the_longest_and_names_what_fills_up(tt):
    alone = listed(spex_plus.evaluation_batches(tt))
    batches = listed(spex_plus.evaluation_batches(tt, 2))
    rows = [{key: value[i] for key, value in batch.items()} for batch in batches for i in range(2)]
    assert [row["index"] for row in rows] == [0, 1, 2, 3, 4, -1]
    for row, (batch) in zip(rows, alone):
        for kind, samples in (("mixture", row["samples"]), ("enrolment", row["enrolment_samples"])):
            np.testing.assert_array_equal(row[kind][:samples], batch[kind][0])
            assert not np.any(row[kind][samples:])


def test_dynamic_mixtures_are_of_two_talkers_and_another_utterance(pool):
    talkers, files, starts, lengths, ratios = spex_plus.draw_mixed_triplets(pool, 400, 6000, 0, (-3, 3), 0, 0)
    talker_of = np.repeat(np.arange(6), PER_TALKER)
    assert (talker_of[files[:, 0]] == talkers).all() and (talker_of[files[:, 2]] == talkers).all()
    assert (talker_of[files[:, 1]] != talkers).all() and (files[:, 0] != files[:, 2]).all()
    assert len({tuple(row) for row in files[:, [0, 2]]}) == 6 * PER_TALKER * (PER_TALKER - 1)  # every pair comes up
    assert (starts >= 0).all() and (starts[:, 2] == 0).all()
    assert (starts[:, :2] + 6000 <= pool.files.samples[files[:, :2]]).all()
    given = dict(seed=0, epoch=0, snr_db=(-3, 3))
    plain = listed(spex_plus.mixed_batches(pool, 4, 3, 6000, **given))
    louder = listed(spex_plus.mixed_batches(pool, 4, 3, 6000, gain_db=(3, 6), **given))
    for batch in plain + louder:
        target, noise = (np.sum(x**2, axis=1) for x in (batch["target"], batch["mixture"] - batch["target"]))
        assert (np.abs(10 * np.log10(target / noise)) < 3.01).all()
    for batch in plain:
        for enrolment, samples in zip(batch["enrolment"], batch["enrolment_samples"]):
            assert 20 * np.log10(np.sqrt(np.mean(enrolment[:samples] ** 2))) == pytest.approx(-23, abs=0.1)


def test_both_talkers_of_a_dynamic_mixture_are_targets_in_turn(pool):
    given = dict(seed=3, epoch=1, snr_db=(-5, 5), both=True)
    _, files, *_ = spex_plus.draw_mixed_triplets(pool, 8, 6000, 0, (-5, 5), 3, 1, both=True)
    talker_of = np.repeat(np.arange(6), PER_TALKER)
    for batch, drawn in zip(listed(spex_plus.mixed_batches(pool, 4, 2, 6000, **given)), files.reshape(2, 4, 3)):
        mixture, target = batch["mixture"], batch["target"]
        for i in (0, 2):
            np.testing.assert_allclose(mixture[i], mixture[i + 1], atol=1e-6)
            np.testing.assert_allclose(target[i] + target[i + 1], mixture[i], atol=1e-6)
            assert batch["speaker"][i] != batch["speaker"][i + 1]
        assert (talker_of[drawn[:, 2]] == batch["speaker"]).all()
        assert (drawn[:, 2] != drawn[:, 0]).all()  # nobody enrols with what is in the mixture
    ratios = spex_plus.draw_mixed_triplets(pool, 400, 6000, 0, (-5, 5), 3, 1, both=True)[4]
    np.testing.assert_array_equal(ratios[::2], -ratios[1::2])


def test_dynamic_mixing_needs_two_talkers_with_two_utterances(corpus):
    paths = find.find_speakers(corpus)
    with pytest.raises(UserError, match="1 of 2 talkers"):
        spex_plus.talker_pool(corpus, {"100": paths["100"], "101": paths["101"][:1]}, RATE)
    with pytest.raises(UserError, match="talker 100 is not among the 1 classes"):
        spex_plus.talker_pool(corpus, paths, RATE, speakers=["101"])


def test_dynamic_mixing_leaves_out_what_can_enrol_nobody(corpus, tmp_path, capsys):
    """Short and silent utterances change nothing of what is drawn from the others."""
    paths = {talker: [str(corpus / path) for path in found] for talker, found in
             find.find_speakers(corpus).items()}  # fmt: skip
    write_pcm16(tmp_path / "short.wav", voice(0, 1, 0.1), RATE)
    write_pcm16(tmp_path / "silent.wav", np.zeros(2 * RATE), RATE)
    others = [str(tmp_path / "short.wav"), str(tmp_path / "silent.wav")]
    more = paths | {"100": others[:1] + paths["100"] + others[1:], "200": paths["101"][:1] + others}
    plain, mended = (spex_plus.talker_pool("", some, RATE, shortest=801) for some in (paths, more))
    assert mended.speakers == plain.speakers and mended.files.paths == plain.files.paths
    given = dict(seed=0, epoch=0)
    assert_same_batches(*(listed(spex_plus.mixed_batches(pool, 4, 2, 6000, **given)) for pool in (plain, mended)))
    assert f"4 of {6 * PER_TALKER + 5} utterances are left out" in capsys.readouterr().out
    # Whoever is left out, all keep their numbers in a list that is given.
    speakers = ["105", "200", "104", "103", "nobody", "102", "101", "100"]
    numbered = spex_plus.talker_pool("", more, RATE, speakers, shortest=801)
    assert numbered.speakers == speakers
    for both in (False, True):
        labels, files, *_ = spex_plus.draw_mixed_triplets(numbered, 200, 6000, 0, (-5, 5), 0, 0, both)
        found = [files_of.split("/10")[1][0] for files_of in np.array(numbered.files.paths)[files[:, 0]]]
        assert found == [speakers[label][2] for label in labels] and len(set(labels)) == 6
    (batch,) = listed(spex_plus.mixed_batches(numbered, 4, 1, 6000, **given))
    drawn = spex_plus.draw_mixed_triplets(numbered, 4, 6000, 0, (0, 5), 0, 0)[0]
    np.testing.assert_array_equal(batch["speaker"], drawn)
    with pytest.raises(UserError, match="1 of 2 talkers have two utterances or more that are not silent"):
        spex_plus.talker_pool("", {name: more[name] for name in ("100", "200")}, RATE, shortest=801)


def test_other_rates_are_resampled_or_refused(tmp_path):
    signals = {name: voice(0, i, 0.7, 22050) for i, name in enumerate(("mixture", "target", "enrolment"))}
    for name, samples in signals.items():
        write_pcm16(tmp_path / f"{name}.wav", samples, 22050)
    paths = {name: str(tmp_path / f"{name}.wav") for name in signals}
    record = triplets.Triplet("one", paths["mixture"], paths["target"], (paths["enrolment"],), "a", 0)
    for parity, change in ((False, resample), (True, resample_sinc)):
        some = spex_plus.triplet_set([record], RATE, parity=parity)
        (batch,) = listed(spex_plus.evaluate(some))
        for name, path in paths.items():
            expected = change(read_mono(path), 22050, RATE)
            np.testing.assert_allclose(batch[name][0], expected, atol=1e-6)
            clean = resample(signals[name], 22050, RATE)
            np.testing.assert_allclose(batch[name][0][500:-500], clean[500:-500], atol=0.02)
        assert batch["samples"] == len(expected)
    with pytest.raises(UserError, match="22050 Hz, 8000 Hz is needed"):
        spex_plus.triplet_set([record], RATE, resampled=False)


@pytest.mark.parametrize("kind", ["extensible", "chunks", "streamed", "RIFX", "RF64", "FLAC"])
def test_wavs_of_all_kinds_give_the_same(made, tmp_path, kind):
    records = triplets.read_triplets(made / "tt")
    changed = [
        dataclasses.replace(record, mixture=str(tmp_path / f"{i}m.wav"), enrolments=(str(tmp_path / f"{i}e.wav"),))
        for i, record in enumerate(records)
    ]
    for before, after in zip(records, changed):
        write_as(after.mixture, read_pcm16(before.mixture), kind)
        # Of several channels the first counts.
        speech = read_pcm16(before.enrolments[0])
        write_as(after.enrolments[0], np.stack([speech, speech[::-1]], axis=1), kind)
    ours, theirs = (spex_plus.triplet_set(some, RATE) for some in (changed, records))
    for make in (spex_plus.evaluation_batches, lambda some: spex_plus.training_batches(
        some, 2, 0, 0, segment_samples=3000, enrolment_samples=5000
    )):  # fmt: skip
        assert make(ours).element_spec == make(theirs).element_spec
        assert_same_batches(listed(make(ours)), listed(make(theirs)))


def test_a_file_that_went_bad_is_named(made, tmp_path, corpus):
    succeed(tmp_path, SCRIPT, **flags_for(corpus, tmp_path / "set", nfiles=2))
    records = triplets.read_triplets(tmp_path / "set")
    some = spex_plus.triplet_set(records, RATE)
    with open(records[1].target, "r+b") as file:
        file.truncate(1000)
    with pytest.raises(UserError, match=os.path.basename(records[1].target)):
        list(spex_plus.evaluate(some))
