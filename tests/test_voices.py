"""The built-in corpus, made as a user makes it, only small."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from feat.base.files import UserError
from feat.corpora import voices
from feat.corpora.lists import SETS, mixture_paths, read_mixture_lines, read_names
from feat.corpora.sentences import SENTENCES
from feat.signals.audio import read_pcm16, wav_info

SCRIPT = Path(voices.__file__).parent.parent / "voices.py"
TALKERS = {"tr": 4, "cv": 2, "tt": 3}
MIXTURES = {"tr": 6, "cv": 2, "tt": 3}
FLAGS = [
    "--utterances_per_talker=2",
    *(f"--{name}_talkers={count}" for name, count in TALKERS.items()),
    *(f"--{name}_mixtures={count}" for name, count in MIXTURES.items()),
]

pytestmark = pytest.mark.skipif(importlib.util.find_spec("espeakng_loader") is None, reason="pip install -e .[corpus]")


def command(folder, *flags):
    return [sys.executable, str(SCRIPT), "--corpus_folder", str(folder), *FLAGS, *flags]


def run(folder, *flags):
    return subprocess.run(command(folder, *flags), capture_output=True, text=True, check=False)


def make(folder, **changes):
    settings = {"talkers_per_set": TALKERS, "mixtures_per_set": MIXTURES, "utterances_per_talker": 2}
    return voices.make_corpus(str(folder), **{**settings, "num_workers": 1, **changes})


def content(folder):
    """{relative path: bytes} of the files a user sees; temporary files begin with a dot."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name[0] != "."
    }


def table(path):
    header, *rows = (line.split("\t") for line in path.read_text().splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A corpus that no test changes."""
    folder = tmp_path_factory.mktemp("voices") / "corpus"
    result = run(folder, "--num_workers=1")
    assert result.returncode == 0, result.stderr
    assert "9 talkers, 18 utterances" in result.stdout
    assert "11 mixtures" in result.stdout
    return folder


@pytest.fixture
def copy(corpus, tmp_path):
    return Path(shutil.copytree(corpus, tmp_path / "copy"))


def test_the_lists_name_what_is_there(corpus):
    for set_name, count in MIXTURES.items():
        names = read_names(corpus / "lists", set_name)
        assert len(names) == count
        assert [line.name for line in read_mixture_lines(corpus / "lists", set_name)] == names
        for name in names:
            signals = {
                source: read_pcm16(path, 8000).astype(int)
                for source, path in mixture_paths(corpus, set_name, name).items()
            }
            assert np.abs(signals["s1"] + signals["s2"] - signals["mix"]).max() <= 2
            assert max(np.abs(signal).max() for signal in signals.values()) == pytest.approx(29491, abs=1)


def test_utterances_sound_like_some_seconds_of_speech(corpus):
    wavs = list((corpus / "voices" / "wav8k").rglob("*.wav"))
    assert len(wavs) == 18
    for path in wavs:
        assert path.parent.name == path.name.split("_")[0]
        assert 2.5 < wav_info(path).seconds < 9
        level_db = 10 * np.log10(np.mean((read_pcm16(path, 8000) / 32768.0) ** 2))
        assert level_db == pytest.approx(voices.LEVEL_DB, abs=0.1)


def test_a_voice_with_high_peaks_is_made_quieter():
    samples = np.full(22050, 70.0)
    samples[1000:1300] = 6000
    samples[1140:1160] = 18000
    shaped = voices.shape_utterance(samples.astype(np.int16), voices.ENGINE_RATE_HZ)
    assert 0.99 < np.abs(shaped).max() < 1


def test_sets_share_neither_talkers_nor_sentences(corpus):
    talkers = table(corpus / "voices" / "talkers.tsv")
    assert len({row["talker"] for row in talkers}) == len(talkers) == 9
    said = {set_name: set() for set_name in SETS}
    for row in table(corpus / "voices" / "utterances.tsv"):
        said[row["set"]].update(text.strip(" .?") for text in row["text"].replace("?", ".").split(". "))
    assert all(said.values())
    for one, other in (("tr", "cv"), ("tr", "tt"), ("cv", "tt")):
        assert not said[one] & said[other]
        assert not set(SENTENCES[one]) & set(SENTENCES[other])


def test_sources_of_a_mixture_are_of_different_talkers_of_its_set(corpus):
    set_of = {row["talker"]: row["set"] for row in table(corpus / "voices" / "talkers.tsv")}
    for set_name in SETS:
        for line in read_mixture_lines(corpus / "lists", set_name):
            talkers = [path.split("/")[-2] for path in line.paths]
            assert len(set(talkers)) == 2
            assert {set_of[talker] for talker in talkers} == {set_name}


def test_the_same_seed_gives_the_same_files_and_another_does_not(corpus, tmp_path):
    make(tmp_path / "again")
    assert content(tmp_path / "again") == content(corpus)
    make(tmp_path / "other", seed=1)
    assert read_names(tmp_path / "other" / "lists", "tr") != read_names(corpus / "lists", "tr")


def test_a_second_run_touches_no_wav(copy):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*.wav")}
    make(copy)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*.wav")} == before


def test_what_was_lost_comes_back_the_same(corpus, copy):
    name = read_names(copy / "lists", "tr")[3]
    os.remove(mixture_paths(copy, "tr", name)["s2"])
    os.remove(next((copy / "voices" / "wav8k" / "tr").rglob("*_01.wav")))
    os.remove(copy / "lists" / "mix_2_spk_min_tr_mix")
    make(copy)
    assert content(copy) == content(corpus)


@pytest.mark.parametrize(("begun", "workers"), [("voices/wav8k", 2), ("2speakers/wav8k", 1)])
def test_killed_and_started_again(corpus, tmp_path, begun, workers):
    process = subprocess.Popen(command(tmp_path, f"--num_workers={workers}"), stdout=subprocess.DEVNULL)
    try:
        while not any((tmp_path / begun).rglob("[!.]*.wav")):
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    time.sleep(0.5)  # workers notice that their parent is gone
    for path in tmp_path.rglob("[!.]*.wav"):
        assert wav_info(path).frames > 0
    make(tmp_path)
    assert content(tmp_path) == content(corpus)


def test_other_settings_are_refused_until_told_to_overwrite(copy):
    before = content(copy)
    result = run(copy, "--seed=5", "--utterances_per_talker=3")
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert "seed 0 (now 5)" in line
    assert "utterances_per_talker 2 (now 3)" in line
    assert "--overwrite" in line
    assert content(copy) == before

    make(copy, seed=5, overwrite=True)
    mixtures = {path.stem for path in (copy / "2speakers").rglob("*.wav")}
    assert mixtures == {name for set_name in SETS for name in read_names(copy / "lists", set_name)}
    make(copy, seed=5)


def test_a_folder_of_other_origin_is_left_alone(tmp_path):
    foreign = tmp_path / "2speakers" / "wav8k" / "min" / "tr" / "mix" / "mine.wav"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"precious")
    with pytest.raises(UserError, match="another folder"):
        make(tmp_path)
    assert foreign.read_bytes() == b"precious"


def test_three_talkers_at_another_rate(tmp_path):
    few = {"tr": 3, "cv": 3, "tt": 3}
    counts = {"tr": 2, "cv": 1, "tt": 1}
    options = {"talkers_per_set": few, "mixtures_per_set": counts, "utterances_per_talker": 1}
    make(tmp_path, **options, talkers=3, sample_rate=16000)
    (name,) = read_names(tmp_path / "lists", "tt", talkers=3)
    paths = mixture_paths(tmp_path, "tt", name, talkers=3, sample_rate=16000)
    assert list(paths) == ["s1", "s2", "s3", "mix"]
    assert {wav_info(path).sample_rate for path in paths.values()} == {16000}


def test_too_few_talkers(tmp_path):
    with pytest.raises(UserError, match="set cv: 1 talkers"):
        make(tmp_path, talkers_per_set={"tr": 2, "cv": 1, "tt": 2})
    assert not list(tmp_path.iterdir())


def test_without_the_engine_the_pip_line_is_given(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e \.\[corpus\]"):
        make(tmp_path)


def test_a_disk_that_is_too_small(tmp_path, monkeypatch):
    monkeypatch.setattr("feat.base.files.free_bytes", lambda path: 1000)
    with pytest.raises(UserError, match="B are free"):
        make(tmp_path)
    assert not list(tmp_path.rglob("*.wav"))


def test_any_number_of_voices_can_be_drawn():
    talkers = voices.draw_talkers({"tr": 400, "cv": 30, "tt": 31})
    assert len({talker.name for talker in talkers}) == 461
    bodies = {talker.variant.split("gender", 1)[1] for talker in talkers}
    assert len(bodies) == 461
    assert abs(sum(talker.sex == "m" for talker in talkers) - 230) <= 1


def test_the_talkers_of_the_test_set_do_not_depend_on_the_training_set():
    few = voices.draw_talkers({"tr": 2, "cv": 4, "tt": 6})
    many = voices.draw_talkers({"tr": 90, "cv": 4, "tt": 6})
    assert [talker for talker in many if talker.set_name != "tr"] == [
        talker for talker in few if talker.set_name != "tr"
    ]


def test_no_sentence_comes_again_before_all_have_been_said():
    texts = voices.draw_texts(SENTENCES["cv"], 10, voices.random.Random(0))
    assert sorted(" ".join(texts).split()) == sorted(" ".join(SENTENCES["cv"]).split())


def test_sentences_are_of_seven_to_ten_words():
    sentences = [sentence for group in SENTENCES.values() for sentence in group]
    assert len(set(sentences)) == len(sentences) == 150
    assert all(7 <= len(sentence.split()) <= 10 for sentence in sentences)
