"""Mixing WSJ0 by its lists, and any other recordings by drawn ones, on a few seconds of modulated noise."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from feat import wsj0_mix
from feat.base.files import UserError
from feat.corpora import find
from feat.corpora.lists import SETS, mixture_paths, read_mixture_lines, read_names
from feat.corpora.mixture_tree import MixtureTree, measure_level
from feat.signals.audio import read_mono, read_pcm16, wav_info, write_pcm16
from feat.signals.mixing import active_level

LINES_2 = """wsj0/si_tr_s/01t/01to030v.wav 1.9857 wsj0/si_tr_s/02e/02eo0306.wav -1.9857
wsj0/si_tr_s/02e/02eo0306.wav 6.9829e-05 wsj0/si_tr_s/20g/20go010e.wav -6.9829e-05
"""
LINES_3 = (
    "wsj0/si_tr_s/01t/01to030v.wav 1.2972 wsj0/si_tr_s/02e/02eo0306.wav -1.2972 wsj0/si_tr_s/20g/20go010e.wav 0 \n"
)
SECONDS = {"01t/01to030v": 1.2, "02e/02eo0306": 0.9, "20g/20go010e": 1.4}


def write_speech(path, seconds, seed, rate=16000):
    rng = np.random.default_rng(seed)
    time_s = np.arange(int(seconds * rate)) / rate
    samples = rng.standard_normal(len(time_s)) * np.clip(np.sin(2 * np.pi * 3 * time_s + seed), 0, None)
    write_pcm16(path, 0.05 * samples, rate)


def run(*flags):
    command = [sys.executable, wsj0_mix.__file__, "--num_workers=1", *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def succeed(*flags):
    result = run(*flags)
    assert result.returncode == 0, result.stderr
    return result.stdout


def fail(*flags):
    result = run(*flags)
    assert result.returncode == 1, result.stdout
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]  # beside progress bars
    return line


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()}


@pytest.fixture
def wsj0(tmp_path):
    """A folder with wsj0/ and lists/, and the flags that mix its training set."""
    for seed, (name, seconds) in enumerate(SECONDS.items()):
        write_speech(tmp_path / "wsj0" / "si_tr_s" / (name + ".wav"), seconds, seed)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "mix_2_spk_tr.txt").write_text(LINES_2)
    (tmp_path / "lists" / "mix_3_spk_tr.txt").write_text(LINES_3)
    return tmp_path


def flags_of(folder):
    return [
        f"--wsj0_root={folder}",
        f"--lists_folder={folder / 'lists'}",
        f"--output_folder={folder / 'out'}",
        "--sets=tr",
    ]


@pytest.fixture
def readers(tmp_path):
    """Ten talkers with three short utterances each, in sub-folders, as LibriSpeech has them."""
    for talker in range(10):
        for k in range(3):
            write_speech(tmp_path / "in" / f"{talker}" / "77" / f"{talker}-77-{k}.wav", 0.5, 10 * talker + k)
    return tmp_path / "in"


def draw_flags(readers, output, *flags):
    counts = ("--tr_mixtures=8", "--cv_mixtures=3", "--tt_mixtures=3")
    shares = "--split=0.6,0.2,0.2"
    return ["--draw", f"--corpus_root={readers}", f"--output_folder={output}", shares, *counts, *flags]


@pytest.mark.parametrize("talkers", [2, 3])
def test_all_rates_and_length_rules(wsj0, talkers):
    succeed(*flags_of(wsj0), f"--talkers={talkers}", "--sample_rates=8000,16000", "--modes=min,max")
    out = wsj0 / "out"
    lines = read_mixture_lines(wsj0 / "lists", "tr", talkers)
    for mode in ("min", "max"):
        assert read_names(out / "lists", "tr", talkers, mode) == [line.name for line in lines]
        assert (out / "lists" / f"mix_{talkers}_spk_{mode}_tr_1").read_text().split() == [
            line.paths[0] for line in lines
        ]
        for rate in (8000, 16000):
            for line in lines:
                lengths = [wav_info(wsj0 / path).seconds for path in line.paths]
                seconds = min(lengths) if mode == "min" else max(lengths)
                paths = mixture_paths(out, "tr", line.name, talkers, rate, mode)
                *sources, mixture = (read_pcm16(path, rate).astype(int) for path in paths.values())
                assert len(sources) == talkers
                assert len(mixture) == pytest.approx(seconds * rate, abs=1)
                assert np.abs(np.sum(sources, axis=0) - mixture).max() <= (talkers + 1) / 2


def test_talkers_are_as_loud_as_the_list_says(wsj0):
    succeed(*flags_of(wsj0), "--modes=max")
    paths = mixture_paths(wsj0 / "out", "tr", "01to030v_1.9857_02eo0306_-1.9857", mode="max")
    levels_db = [10 * np.log10(active_level(read_mono(paths[source]), 8000)[0]) for source in ("s1", "s2")]
    assert levels_db[0] - levels_db[1] == pytest.approx(2 * 1.9857, abs=0.2)


def test_folder_wsj0_itself_is_taken_too(wsj0):
    flags = [f"--wsj0_root={wsj0 / 'wsj0'}", *flags_of(wsj0)[1:]]
    assert "2 mixtures of 2 talkers, 2 of them made now" in succeed(*flags)
    assert "0 of them made now" in succeed(*flags)


def test_what_was_lost_comes_back_the_same(wsj0):
    succeed(*flags_of(wsj0))
    before = content(wsj0 / "out")
    os.remove(next((wsj0 / "out" / "2speakers").rglob("s2/*.wav")))
    os.remove(wsj0 / "out" / "lists" / "mix_2_spk_min_tr_mix")
    assert "1 of them made now" in succeed(*flags_of(wsj0))
    assert content(wsj0 / "out") == before


def test_levels_come_from_the_table(wsj0):
    table = wsj0 / "levels.csv"
    level = measure_level(wsj0 / "wsj0" / "si_tr_s" / "01t" / "01to030v.wav")
    # Claimed to be 6.02 dB louder than it is, the first talker comes out 6.02 dB softer.
    table.write_text(f"utterance,level\n01to030v,{4 * level}\n")
    succeed(*flags_of(wsj0))
    name = "01to030v_1.9857_02eo0306_-1.9857"
    without = [read_mono(path).std() for path in mixture_paths(wsj0 / "out", "tr", name).values()]
    assert "level_table" in fail(*flags_of(wsj0), f"--level_table={table}")
    succeed(*flags_of(wsj0), f"--level_table={table}", "--overwrite")
    with_table = [read_mono(path).std() for path in mixture_paths(wsj0 / "out", "tr", name).values()]
    assert with_table[0] / with_table[1] == pytest.approx(without[0] / without[1] / 2, rel=0.01)


@pytest.mark.parametrize("text", ["a 0.5\nb\n", "a 0.5\nb -1\n", "a 0.5\nb zero\n", "a 0.5\nb 1 2\n"])
def test_a_broken_level_table(tmp_path, text):
    path = tmp_path / "levels.txt"
    path.write_text(text)
    with pytest.raises(UserError, match="line 2"):
        wsj0_mix.read_level_table(path)


def test_level_tables_of_all_shapes(tmp_path):
    path = tmp_path / "levels.txt"
    path.write_text("01to030v 4.0785e-03\nwsj0/si_tr_s/02e/02eo0306.wav\t7e-4\n\n")
    assert wsj0_mix.read_level_table(path) == {"01to030v": 4.0785e-03, "02eo0306": 7e-4}


def test_a_level_table_of_a_windows_editor(tmp_path):
    path = tmp_path / "levels.txt"
    path.write_bytes(b"\xef\xbb\xbf01to030v 4e-3\r\n02eo0306 7e-4\r\n")
    assert wsj0_mix.read_level_table(path) == {"01to030v": 4e-3, "02eo0306": 7e-4}


@pytest.mark.parametrize(
    "extension, said",
    [
        (".wv1", "decode the .wv1 files beside it"),
        (".WV1", "decode the .wv1 files beside it"),
        (".wv2", "02eo0306.wv2 beside it is the second microphone"),
        (".WV2", "decode the .wv1 files, e.g. sph2pipe"),
        (".sph", "check --wsj0_root"),
    ],
)
def test_what_is_missing_is_named(wsj0, extension, said):
    missing = wsj0 / "wsj0" / "si_tr_s" / "02e" / "02eo0306.wav"
    missing.rename(missing.with_suffix(extension))
    tree = MixtureTree(str(wsj0), str(wsj0 / "out"), str(wsj0 / "out" / "lists"))
    with pytest.raises(UserError) as refused:
        wsj0_mix.make_mixtures(tree, {"tr": read_mixture_lines(wsj0 / "lists", "tr")})
    assert str(refused.value).startswith(f"{missing}: no such file; 1 of 3 utterances are missing; ")
    assert said in str(refused.value)


def test_no_folder_of_wsj0(wsj0):
    with pytest.raises(UserError, match="no folder wsj0"):
        find.find_wsj0(wsj0 / "lists")


def test_flags_that_make_no_sense(wsj0):
    assert "--output_folder" in fail("--wsj0_root=.", "--lists_folder=.")
    assert "--modes mean" in fail(*flags_of(wsj0), "--modes=mean")
    assert "--sample_rates 8k" in fail(*flags_of(wsj0), "--sample_rates=8k")


def test_unusable_sources_are_named(wsj0):
    path = wsj0 / "wsj0" / "si_tr_s" / "02e" / "02eo0306.wav"
    path.write_bytes(path.read_bytes()[:2000])
    assert f"{path}: truncated" in fail(*flags_of(wsj0))
    write_pcm16(path, np.zeros(16000), 16000)
    assert f"{path}: the signal is silent" in fail(*flags_of(wsj0))


def test_drawn_from_a_folder_of_talkers(readers, tmp_path):
    out = tmp_path / "out"
    succeed(*draw_flags(readers, out))
    talkers_of = {}
    for set_name, count in (("tr", 8), ("cv", 3), ("tt", 3)):
        lines = read_mixture_lines(out / "lists", set_name)
        assert read_names(out / "lists", set_name) == [line.name for line in lines]
        assert len(lines) == count
        talkers_of[set_name] = {path.split("/")[0] for line in lines for path in line.paths}
        for line in lines:
            assert len({path.split("/")[0] for path in line.paths}) == 2
            for path in mixture_paths(out, set_name, line.name).values():
                assert wav_info(path).sample_rate == 8000
    assert not talkers_of["tr"] & talkers_of["cv"]
    assert not talkers_of["tr"] & talkers_of["tt"]
    assert not talkers_of["cv"] & talkers_of["tt"]


def test_drawing_is_seeded_and_other_settings_are_refused(readers, tmp_path):
    succeed(*draw_flags(readers, tmp_path / "a"))
    succeed(*draw_flags(readers, tmp_path / "b", "--num_workers=2"))
    a, b = ({path.name: data for path, data in content(tmp_path / name).items()} for name in "ab")
    assert a == b
    assert "seed 0 (now 1)" in fail(*draw_flags(readers, tmp_path / "a", "--seed=1"))


def test_drawn_from_sets_that_are_given(readers, tmp_path):
    for talker, set_name in zip("0123456", ["tr", "tr", "tr", "cv", "cv", "tt", "tt"], strict=True):
        (readers.parent / "sets" / set_name).mkdir(parents=True, exist_ok=True)
        (readers / talker).rename(readers.parent / "sets" / set_name / talker)
    succeed(*draw_flags(readers.parent / "sets", tmp_path / "out"))
    for set_name in SETS:
        for line in read_mixture_lines(tmp_path / "out" / "lists", set_name):
            assert all(path.startswith(set_name + "/") for path in line.paths)


def test_drawing_needs_enough_talkers_and_sound_flags(readers, tmp_path):
    out = tmp_path / "out"
    assert "set cv: 1 talkers" in fail(*draw_flags(readers, out, "--split=0.8,0.1,0.1"))
    assert "--split" in fail(*draw_flags(readers, out, "--split=0.8,0.3,0.1"))
    assert not out.exists()


def test_folders_that_cannot_be_drawn_from(readers, tmp_path):
    shares = {"tr": 0.8, "cv": 0.1, "tt": 0.1}
    with pytest.raises(UserError, match="--corpus_root"):
        find.find_utterances(tmp_path / "nowhere", 0, shares)
    with pytest.raises(UserError, match="no talker"):
        find.find_utterances(readers / "3" / "77", 0, shares)
    (readers / "3" / "77").rename(readers / "3" / "77 b")
    with pytest.raises(UserError, match="blanks"):
        find.find_utterances(readers, 0, shares)


def test_killed_and_started_again(readers, tmp_path):
    flags = draw_flags(readers, tmp_path / "killed", "--tr_mixtures=50")
    command = [sys.executable, wsj0_mix.__file__, *flags, "--num_workers=2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while not any((tmp_path / "killed" / "2speakers").rglob("mix/[!.]*.wav")):
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not list((tmp_path / "killed" / "lists").glob("*_mix"))
    time.sleep(0.5)  # workers notice that their parent is gone
    succeed(*flags)
    succeed(*draw_flags(readers, tmp_path / "whole", "--tr_mixtures=50"))
    killed, whole = (
        {str(Path(path).relative_to(tmp_path / name)): data for path, data in content(tmp_path / name).items()}
        for name in ("killed", "whole")
    )
    assert killed == whole
