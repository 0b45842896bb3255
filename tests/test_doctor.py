"""The corpus doctor finds a planted fault of every kind, and none in a clean corpus."""

import csv
import os
import shutil

import numpy as np
import pytest
import soundfile
import speech

from feat.corpora.lists import mixture_paths

LISTS = dict(tr=3, cv=2, tt=2)


@pytest.fixture
def corpus(tmp_path):
    """(folder, {set: names}); tt has talkers of its own."""
    lists = speech.make_corpus(tmp_path, dict(tr=3, cv=2), seconds=(0.5, 0.6))
    lists["tt"] = []
    for i in range(2):
        name = speech.mixture_name([(5, f"tt{i}", 0.5), (6 + i, f"tt{i}", -0.5)])
        speech.write_mixture(tmp_path, "tt", name, [speech.voice(5, i, 0.5), speech.voice(6 + i, i, 0.5)])
        lists["tt"].append(name)
    speech.write_list(tmp_path, "tt", lists["tt"])
    return tmp_path, lists


def examine(folder, **flags):
    """(exit code, {(file name, kind)}) of a look at the corpus."""
    done = speech.run_here(folder, "feat/doctor.py", report="faults.csv", num_workers=1, **flags)
    assert "Traceback" not in done.stderr
    with open(folder / "faults.csv", encoding="utf-8") as file:
        return done.returncode, {(os.path.basename(row["path"]), row["kind"]) for row in csv.DictReader(file)}


def path_of(corpus, source, set_name="tr", line=0):
    folder, lists = corpus
    return mixture_paths(str(folder / "data"), set_name, lists[set_name][line])[source]


def rewrite(path, change, rate=speech.RATE, subtype="PCM_16"):
    samples = soundfile.read(path, dtype="float64")[0]
    soundfile.write(path, change(samples), rate, subtype=subtype)


def test_a_clean_corpus_has_no_faults(corpus):
    folder, _ = corpus
    assert examine(folder) == (0, set())
    done = speech.run_here(folder, "feat/doctor.py", num_workers=1)
    assert "7 mixtures looked at, 0 faults" in done.stdout and "note: lists: cv has" in done.stdout


def nan(samples):
    samples[100] = np.nan
    return samples


@pytest.mark.parametrize(
    ("kind", "source", "change", "how"),
    [
        ("wrong rate", "s1", lambda x: x, dict(rate=16000)),
        ("stereo", "s1", lambda x: np.stack([x, x], axis=1), {}),
        ("clipped", "mix", lambda x: np.clip(8 * x / np.abs(x).max(), -1, 1), {}),
        ("silent", "s1", lambda x: 0 * x, {}),
        ("NaN", "s1", nan, dict(subtype="FLOAT")),
        ("DC offset", "s1", lambda x: x + 0.1, {}),
        ("unequal lengths", "s1", lambda x: x[:-80], {}),
        ("not the sum of its sources", "mix", lambda x: np.roll(x, 8), {}),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value or value == "NaN" else "",
)
def test_finds_what_is_wrong_with_a_file(corpus, kind, source, change, how):
    folder, _ = corpus
    path = path_of(corpus, source)
    rewrite(path, change, **how)
    code, faults = examine(folder)
    assert code == 1 and (os.path.basename(path), kind) in faults
    # Nothing is said of files that are as they were.
    assert {name for name, _ in faults} == {os.path.basename(path)}


def test_finds_broken_and_missing_files(corpus):
    folder, _ = corpus
    os.remove(path_of(corpus, "s2"))
    os.truncate(path_of(corpus, "s1", line=1), 1000)
    names = {os.path.basename(path_of(corpus, "s1", line=i)) for i in (0, 1)}
    assert examine(folder) == (1, {(name, "unreadable") for name in names})


def test_finds_duplicates(corpus):
    folder, _ = corpus
    for source in ("s1", "s2", "mix"):
        shutil.copy(path_of(corpus, source), path_of(corpus, source, line=1))
    shutil.copy(path_of(corpus, "s1", line=2), path_of(corpus, "s2", line=2))
    rewrite(path_of(corpus, "mix", line=2), lambda x: 2 * soundfile.read(path_of(corpus, "s1", line=2))[0])
    names = {os.path.basename(path_of(corpus, "mix", line=i)) for i in (1, 2)}
    assert examine(folder) == (1, {(name, "duplicate") for name in names})


def test_finds_talkers_and_utterances_in_two_splits(corpus):
    folder, lists = corpus
    name = lists["tr"][0]
    for source, path in mixture_paths(str(folder / "data"), "tt", name).items():
        rewrite_to = mixture_paths(str(folder / "data"), "tr", name)[source]
        os.makedirs(os.path.dirname(path), exist_ok=True)
        shutil.copy(rewrite_to, path)
    speech.write_list(folder, "tt", [*lists["tt"], name])
    code, faults = examine(folder)
    kinds = {kind for _, kind in faults}
    assert code == 1 and kinds == {"talkers in two splits", "utterances in two splits", "duplicate"}


def test_recordings_of_single_talkers(tmp_path):
    root = tmp_path / "talkers"
    for talker in range(3):
        (root / str(talker)).mkdir(parents=True)
        for i in range(2):
            soundfile.write(root / f"{talker}/{i}.flac", speech.voice(talker, i, 0.4), speech.RATE)
    assert examine(tmp_path, corpus_root="talkers") == (0, set())
    shutil.copy(root / "0/0.flac", root / "1/copy.flac")
    soundfile.write(root / "1/rate.flac", speech.voice(1, 7, 0.4), 16000)
    shutil.copy(root / "2/0.flac", root / "2/0_wv2.flac")
    code, faults = examine(tmp_path, corpus_root="talkers")
    assert code == 1
    assert faults == {("copy.flac", "duplicate"), ("rate.flac", "wrong rate"), ("0_wv2.flac", "second microphone")}
