"""The evaluator on small folders of noise that comes and goes, by function and as a person runs it."""

import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from feat.base.files import UserError
from feat.corpora.lists import mixture_paths
from feat.signals.audio import write_pcm16
from nn import evaluate
from nn.scoring import metrics, report

RATE = 8000
NAMES = ["b_1.5_a_-1.5", "a_0.3_c_-0.3", "c_2_b_-2"]  # in an order of their own
LEAKS = {"oracle": 0.05, "final": 0.2}  # amplitude of the other talker in the outputs
ORACLE_LABEL = "stage 1, oracle order"
SCRIPT = os.path.join(os.path.dirname(evaluate.__file__), "evaluate.py")


def talkers(count, seed, seconds=1.0):
    """float32 [count, samples] noise in bursts of 0.1 s."""
    rng = np.random.default_rng(seed)
    samples = int(seconds * RATE)
    bursts = np.repeat(rng.uniform(0, 1, (count, samples // 800 + 1)) ** 2, 800, axis=1)[:, :samples]
    return (0.05 * bursts * rng.standard_normal((count, samples))).astype(np.float32)


def write_bin(path, references, estimates, mixture=None):
    """The layout that inference writes: references, outputs, the mixture once for every talker."""
    mixture = references.sum(axis=0) if mixture is None else mixture
    np.concatenate([references, estimates, [mixture] * len(references)]).astype("<f4").tofile(path)


def read_table(text):
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """data/ and lists/ in the layout of WSJ0-2mix; oracle/ and final/ with .bin files; wavs/ like final/."""
    root = tmp_path_factory.mktemp("corpus")
    for folder in ("lists", "oracle", "final", "wavs"):
        (root / folder).mkdir()
    (root / "lists" / "mix_2_spk_min_tt_mix").write_text("".join(name + "\n" for name in NAMES))
    for seed, name in enumerate(NAMES):
        references = np.round(talkers(2, seed) * 32768) / 32768
        mixture = references.sum(axis=0)
        signals = {"s1": references[0], "s2": references[1], "mix": mixture}
        for source, path in mixture_paths(str(root / "data"), "tt", name).items():
            write_pcm16(path, signals[source], RATE)
        for folder, leak in LEAKS.items():
            estimates = references + leak * references[::-1]
            if folder == "final" and seed == 1:
                estimates = estimates[::-1]
            write_bin(root / folder / f"{name}.bin", references, estimates)
        for talker in (0, 1):
            write_pcm16(str(root / "wavs" / f"{name}_s{talker + 1}.wav"), estimates[talker], RATE)
        # Of 10 frames 2 + seed go wrong, at half the weight of the others.
        wrong = np.arange(10) < 2 + seed
        np.savez(
            root / "final" / f"{name}_assign.npz",
            assign=wrong.astype(int),
            oracle=np.zeros(10, int),
            weight=np.where(wrong, 0.5, 1.0),
        )
    return root


@pytest.fixture(scope="module")
def script_run(corpus, tmp_path_factory):
    """The script on both .bin folders with two processes, and the folder of its output."""
    output = tmp_path_factory.mktemp("run") / "scores"
    run = run_script(
        f"--estimates={ORACLE_LABEL}={corpus / 'oracle'}",
        f"--estimates=final={corpus / 'final'}",
        f"--wav_list_folder={corpus / 'lists'}",
        f"--output_folder={output}",
        "--num_workers=2",
    )
    assert run.returncode == 0, run.stderr
    return run, output


def run_script(*arguments):
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)


def test_script_prints_table_and_definitions(script_run):
    run, output = script_run
    assert run.stdout == (output / "table.txt").read_text()
    lines = run.stdout.splitlines()
    assert lines[0].startswith("3 mixtures of 2 talkers, set tt, 8000 Hz")
    heading = lines[2].split("  ")
    columns = ["SI-SDR", "SI-SDRi", "SDR", "SDRi", "PESQ", "ESTOI", "frames right", "frames weighted"]
    assert [cell.strip() for cell in heading if cell] == ["system", *columns, "not scored"]
    assert [line[:21].strip() for line in lines[3:6]] == ["mixture", ORACLE_LABEL, "final"]
    for column in columns:
        assert f"\n  {column}: " in run.stdout
    words = " ".join(run.stdout.split())
    assert all(metrics.DEFINITIONS[m] in words for m in ("si_sdr", "sdri", "pesq", "frame_accuracy"))


def test_scp_lists_score_as_folders_do(corpus, tmp_path):
    """As the authors of SpEx+ score: lists made on another machine, estimates a few samples short."""

    def write(kind, paths):
        (tmp_path / f"{kind}.scp").write_text("".join(f"{name} {path}\n" for name, path in zip(NAMES, paths)))
        return tmp_path / f"{kind}.scp"

    lists = {}
    for source in ("s1", "s2", "mix"):
        paths = [mixture_paths(str(corpus / "data"), "tt", name)[source] for name in NAMES]
        lists[source] = write(source, [path.replace(str(corpus), "/export/corpus") for path in paths])
    short = []
    for talker in (1, 2):
        for name in NAMES:
            samples, _ = soundfile.read(corpus / "wavs" / f"{name}_s{talker}.wav", dtype="float32")
            write_pcm16(str(tmp_path / f"{name}_{talker}.wav"), samples[:-9], RATE)
        short.append(write(f"est{talker}", [f"{name}_{talker}.wav" for name in NAMES]))
    flags = [
        f"--estimates=short={short[0]},{short[1]}",
        f"--references={lists['s1']},{lists['s2']}",
        f"--scp_root={tmp_path},/export/corpus/={corpus}",
        "--metrics=si_sdr",
        "--num_workers=1",
        f"--output_folder={tmp_path}",
    ]
    run = run_script(*flags, f"--mixtures={lists['mix']}")
    assert run.returncode == 0, run.stderr
    ours = read_table((tmp_path / "scores.csv").read_text())
    theirs = report.evaluate_folder(
        str(corpus / "wavs"), "short", data_folder=str(corpus / "data"), wav_list_folder=str(corpus / "lists"),
        metric_names=["si_sdr"], num_workers=1,
    )  # fmt: skip
    theirs = read_table(report.format_csv(theirs))
    assert [[row[key] for key in ("utterance", "system", "talker", "output")] for row in ours] == [
        [row[key] for key in ("utterance", "system", "talker", "output")] for row in theirs
    ]
    for key in ("si_sdr", "si_sdri"):
        values = [[float(row[key] or 0) for row in rows] for rows in (ours, theirs)]
        assert values[0] == pytest.approx(values[1], abs=0.1)
    run = run_script(*flags)
    assert run.returncode == 0 and "SI-SDRi" not in run.stdout and "mixture  " not in run.stdout, run.stderr
    (tmp_path / "est2.scp").write_text("other other.wav\n")
    assert f"{NAMES[0]} is in the references, but not there" in run_script(*flags).stderr
    assert "--references: 1 .scp list(s), one for every" in run_script(*flags, f"--references={lists['s1']}").stderr


def test_script_shows_progress(script_run):
    assert "3/3" in script_run[0].stderr


def test_csv_has_a_line_for_every_utterance_system_and_talker(script_run):
    rows = read_table((script_run[1] / "scores.csv").read_text())
    labels = ["mixture", ORACLE_LABEL, "final"]
    expected = [(name, label, talker) for name in NAMES for label in labels for talker in ("s1", "s2")]
    assert [(row["utterance"], row["system"], row["talker"]) for row in rows] == expected
    outputs = [row["output"] for row in rows if row["system"] == "final"]
    assert outputs == ["1", "2", "2", "1", "1", "2"]
    assert {row["output"] for row in rows if row["system"] == "mixture"} == {""}


def test_rows_equal_direct_computation(corpus, script_run):
    rows = read_table((script_run[1] / "scores.csv").read_text())
    for name in NAMES:
        signals = report.read_bin(str(corpus / "oracle" / f"{name}.bin"))
        systems = {"mixture": np.tile(signals.mixture, (2, 1)), ORACLE_LABEL: signals.estimates}
        for label, estimates in systems.items():
            scored = [row for row in rows if row["utterance"] == name and row["system"] == label]
            direct = {
                "si_sdr": metrics.si_sdr(estimates, signals.references),
                "si_sdri": metrics.si_sdr(estimates, signals.references)
                - metrics.si_sdr(systems["mixture"], signals.references),
                "sdr": metrics.sdr(estimates, signals.references),
                "pesq": metrics.pesq(estimates, signals.references, RATE),
                "estoi": metrics.estoi(estimates, signals.references, RATE),
            }
            for metric, values in direct.items():
                assert [float(row[metric]) for row in scored] == pytest.approx(values, abs=2e-6), metric


def test_summary_holds_means_failures_and_definitions(script_run):
    _, output = script_run
    summary = json.loads((output / "summary.json").read_text())
    rows = read_table((output / "scores.csv").read_text())
    assert (summary["utterances"], summary["talkers"], summary["sample_rate"]) == (3, 2, RATE)
    for system in summary["systems"]:
        for metric in ("si_sdr", "si_sdri", "sdr", "sdri", "pesq", "estoi"):
            values = [float(row[metric]) for row in rows if row["system"] == system["label"]]
            assert system["means"][metric] == pytest.approx(np.mean(values), abs=2e-6)
            assert system["failures"][metric] == 0
    mixture, oracle, final = summary["systems"]
    assert mixture["means"]["si_sdri"] == mixture["means"]["sdri"] == 0
    assert oracle["means"]["si_sdr"] > final["means"]["si_sdr"] > mixture["means"]["si_sdr"]
    assert summary["definitions"]["sdr"] == metrics.DEFINITIONS["sdr"]


def test_frame_accuracy_and_oracle_bound(script_run):
    run, output = script_run
    summary = json.loads((output / "summary.json").read_text())
    _, oracle, final = summary["systems"]
    assert "frame_accuracy" not in oracle["means"]
    assert final["means"]["frame_accuracy"] == pytest.approx(np.mean([0.8, 0.7, 0.6]))
    weighted = np.mean([8 / 9, 7 / 8.5, 6 / 8])
    assert final["means"]["frame_accuracy_weighted"] == pytest.approx(weighted, abs=1e-6)
    bound = summary["oracle_bound"]
    assert bound == {"label": ORACLE_LABEL, "si_sdri": oracle["means"]["si_sdri"]}
    gap_db = bound["si_sdri"] - final["means"]["si_sdri"]
    assert f"Oracle bound: {bound['si_sdri']:.2f} dB SI-SDRi ({ORACLE_LABEL}" in run.stdout
    assert f"{gap_db:.2f} dB below it" in run.stdout


def test_scores_do_not_depend_on_the_number_of_processes(corpus, script_run):
    folders = {ORACLE_LABEL: str(corpus / "oracle"), "final": str(corpus / "final")}
    evaluation = report.evaluate(folders, wav_list_folder=str(corpus / "lists"), num_workers=1)
    assert report.format_csv(evaluation) == (script_run[1] / "scores.csv").read_text()
    summary = json.loads((script_run[1] / "summary.json").read_text())
    assert report.summarize(evaluation, oracle=ORACLE_LABEL) == summary


def score(folder, **options):
    """Evaluation of a folder in this process."""
    options = {"metric_names": ["si_sdr"], "num_workers": 1, **options}
    return report.evaluate_folder(str(folder), label="final", **options)


def means(evaluation):
    return {system["label"]: system["means"] for system in report.summarize(evaluation)["systems"]}


def test_without_a_list_all_bin_files_are_scored_in_order_of_name(corpus):
    assert score(corpus / "final").names == sorted(NAMES)


def test_wavs_score_like_the_bin_files_they_were_rounded_from(corpus):
    options = {"data_folder": str(corpus / "data"), "wav_list_folder": str(corpus / "lists")}
    from_wavs = means(score(corpus / "wavs", **options))
    from_bins = means(score(corpus / "final", **options))
    assert from_wavs["mixture"] == pytest.approx(from_bins["mixture"], abs=1e-5)
    for metric, mean in from_wavs["final"].items():
        assert mean == pytest.approx(from_bins["final"][metric], abs=0.01)
    folders = {"final": str(corpus / "final"), "wavs": str(corpus / "wavs")}
    both = means(report.evaluate(folders, **options, metric_names=["si_sdr"], num_workers=1))
    assert both["wavs"] == pytest.approx(from_wavs["final"], abs=1e-5)


def test_bin_files_win_over_wavs_beside_them(corpus, tmp_path):
    references = talkers(2, 0)
    write_bin(tmp_path / "u.bin", references, references)
    for talker in (1, 2):
        path = mixture_paths(str(tmp_path / "data"), "tt", "u")[f"s{talker}"]
        write_pcm16(path, references[talker - 1], RATE)
        write_pcm16(str(tmp_path / f"u_s{talker}.wav"), references.sum(axis=0) / 2, RATE)
    write_pcm16(mixture_paths(str(tmp_path / "data"), "tt", "u")["mix"], references.sum(axis=0), RATE)
    (tmp_path / "mix_2_spk_min_tt_mix").write_text("u\n")
    options = {"data_folder": str(tmp_path / "data"), "wav_list_folder": str(tmp_path)}
    assert means(score(tmp_path, **options))["final"]["si_sdr"] == pytest.approx(100)
    assert means(score(tmp_path, **options, source="wav"))["final"]["si_sdr"] < 10


def test_three_talkers(tmp_path):
    references = talkers(3, 0)
    estimates = references[[2, 0, 1]] + 0.1 * references
    write_bin(tmp_path / "u.bin", references, estimates)
    keep, turn = [0, 1, 2], [1, 2, 0]
    np.savez(tmp_path / "u_assign.npz", assign=[turn] * 4, oracle=[keep] * 3 + [turn], weight=np.ones(4))
    evaluation = score(tmp_path, talkers=3)
    result = evaluation.utterances[0]["final"]
    assert result.outputs == (2, 3, 1)
    assert result.scores["si_sdr"] == pytest.approx(metrics.si_sdr(estimates[[1, 2, 0]], references))
    assert result.frame_accuracy["frame_accuracy"] == 0.75
    assert len(read_table(report.format_csv(evaluation))) == 2 * 3


def test_what_cannot_be_scored_is_counted_and_left_out(tmp_path):
    references = talkers(2, 0)
    write_bin(tmp_path / "good.bin", references, references)
    write_bin(tmp_path / "mute.bin", references, references * [[0], [1]])
    clicks = references.copy()
    clicks[0, 1:] = 0  # holds no speech for PESQ
    write_bin(tmp_path / "click.bin", clicks, references)
    broken = references.copy()
    broken[1, 7] = np.nan
    write_bin(tmp_path / "nan.bin", references, broken)
    evaluation = score(tmp_path, metric_names=["si_sdr", "pesq"])
    summary = report.summarize(evaluation)
    mixture, final = summary["systems"]
    assert final["failures"] == {"si_sdr": 2, "si_sdri": 2, "pesq": 3}
    assert mixture["failures"] == {"si_sdr": 0, "si_sdri": 0, "pesq": 1}
    defined = [u["final"].scores["pesq"] for u in evaluation.utterances]
    assert final["means"]["pesq"] == pytest.approx(np.nanmean(defined), abs=1e-6)
    assert all(np.isfinite(list(system["means"].values())).all() for system in summary["systems"])
    assert "SI-SDR 2, SI-SDRi 2, PESQ 3" in report.format_table(summary)
    json.dumps(summary, allow_nan=False)


def test_nothing_to_score_at_all_is_a_dash(tmp_path):
    references = talkers(2, 0)
    write_bin(tmp_path / "mute.bin", references, 0 * references)
    summary = report.summarize(score(tmp_path))
    assert summary["systems"][1]["means"] == {"si_sdr": None, "si_sdri": None}
    assert "final         -        -  SI-SDR 2" in report.format_table(summary)


def truncated(folder):
    with open(folder / "u.bin", "r+b") as file:
        file.truncate(os.path.getsize(folder / "u.bin") - 4)


def cut_at_a_multiple_of_the_rows(folder):
    with open(folder / "u.bin", "r+b") as file:
        file.truncate(os.path.getsize(folder / "u.bin") - 24 * 100)


def missing(folder):
    os.remove(folder / "u.bin")


def empty(folder):
    open(folder / "u.bin", "wb").close()


def no_npz(folder):
    (folder / "u_assign.npz").write_bytes(b"no archive")


def empty_npz(folder):
    (folder / "u_assign.npz").write_bytes(b"")


def incomplete_npz(folder):
    np.savez(folder / "u_assign.npz", assign=[0, 1], oracle=[0, 1])


def uneven_npz(folder):
    np.savez(folder / "u_assign.npz", assign=[0, 1], oracle=[0, 1], weight=[1, 1, 1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, r"u\.bin: 191996 bytes are not 6 equal rows of float32; .* write it again"),
        (cut_at_a_multiple_of_the_rows, r"u\.bin: the last 2 of 6 rows differ, .* write it again"),
        (empty, r"u\.bin: 0 bytes are not 6 equal rows"),
        (missing, r"u\.bin: no such file; separate the whole set"),
        (no_npz, r"u_assign\.npz: unusable"),
        (empty_npz, r"u_assign\.npz: unusable .* write it again or remove it"),
        (incomplete_npz, r"u_assign\.npz: unusable .*weight"),
        (uneven_npz, r"u_assign\.npz: unusable .*weight \[3\]"),
    ],
)
def test_damaged_files_are_named_with_the_mend(tmp_path, damage, message):
    references = talkers(2, 0)
    for name in ("u", "v"):
        write_bin(tmp_path / f"{name}.bin", references, references)
    (tmp_path / "mix_2_spk_min_tt_mix").write_text("u\nv\n")
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        score(tmp_path, wav_list_folder=str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"talkers": 3}, r"\.bin: .*mend --talkers"),
        ({"metric_names": ["si_sdr", "bleu"]}, r"--metrics bleu: should be some of si_sdr, snr, sdr"),
        ({"metric_names": ["pesq"], "sample_rate": 44100}, r"44100: PESQ is defined at 8000 and 16000 Hz"),
        ({"source": "wav"}, r"holds no <name>_s1\.wav"),
        ({"source": "flac"}, r"--source flac"),
        ({"num_workers": -1}, r"--num_workers -1"),
        ({"wav_list_folder": "nowhere"}, r"mix_2_spk_min_tt_mix: no such list"),
    ],
)
def test_arguments_that_cannot_be(corpus, options, message):
    with pytest.raises(UserError, match=message):
        score(corpus / "final", **options)


def test_wavs_need_references_of_the_same_length(corpus, tmp_path):
    lists = {"wav_list_folder": str(corpus / "lists")}
    with pytest.raises(UserError, match="need --data_folder and --wav_list_folder"):
        score(corpus / "wavs")
    with pytest.raises(UserError, match="--data_folder: missing"):
        score(corpus / "wavs", **lists)
    with pytest.raises(UserError, match=r"s1.*\.wav: no such file; check --data_folder"):
        score(corpus / "wavs", **lists, data_folder=str(tmp_path))
    for name in NAMES:
        for talker in (1, 2):
            write_pcm16(str(tmp_path / f"{name}_s{talker}.wav"), talkers(1, 0)[0, :7990], RATE)
    with pytest.raises(UserError, match=r"_s1\.wav: 7990 samples, .*mix.* has 8000"):
        score(tmp_path, **lists, data_folder=str(corpus / "data"))


def test_systems_must_have_separated_the_same_mixtures(tmp_path):
    for seed, folder in enumerate(("one", "two")):
        references = talkers(2, seed)
        (tmp_path / folder).mkdir()
        write_bin(tmp_path / folder / "u.bin", references, references)
    folders = {folder: str(tmp_path / folder) for folder in ("one", "two")}
    with pytest.raises(UserError, match="u: .*one and .*two hold different references"):
        report.evaluate(folders, metric_names=["si_sdr"], num_workers=1)
    write_bin(tmp_path / "two" / "v.bin", references, references)
    with pytest.raises(UserError, match=r"one.v\.bin: no such file"):
        report.evaluate(folders, metric_names=["si_sdr"], num_workers=1)


def test_script_names_a_truncated_file_in_one_line(tmp_path):
    folder = tmp_path / "lr=0.1"  # a folder may have a "=" in its name
    folder.mkdir()
    references = talkers(2, 0)
    write_bin(folder / "u.bin", references, references)
    truncated(folder)
    run = run_script(f"--estimates={folder}", f"--output_folder={tmp_path / 'scores'}")
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr == (
        f"error: {folder / 'u.bin'}: 191996 bytes are not 6 equal rows of float32; the file is cut short"
        " or not of 2 talkers: write it again, or mend --talkers\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--estimates: missing"),
        (["--estimates=a=x", "--estimates=a=y"], "the label 'a' is there twice"),
        (["--estimates=a=x", "--oracle=b"], "--oracle b: no such label; should be one of a"),
        (["--estimates=mixture=x"], "'mixture' is the row of the input"),
        (["--estimates=nowhere"], "nowhere: No such file or directory; --estimates takes folders"),
    ],
)
def test_script_refuses_flags_that_cannot_be(tmp_path, arguments, message):
    run = run_script(*arguments, f"--output_folder={tmp_path}")
    assert run.returncode == 1
    assert run.stderr.startswith("error: ") and run.stderr.count("\n") == 1
    assert message in run.stderr


def test_processes_need_no_tensorflow():
    code = "import nn.evaluate, sys; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_one_wanted_talker_and_groups(tmp_path):
    levels_db = {"1_2_000000": 0, "2_1_000001": 5, "1_3_000002": 5, "3_1_000003": 5.3}
    leaks = {"1_2_000000": 0.1, "2_1_000001": 3, "1_3_000002": 0.1, "3_1_000003": 0.1}
    for seed, (name, level_db) in enumerate(levels_db.items()):
        target, other = talkers(2, seed)
        other *= np.linalg.norm(target) / np.linalg.norm(other) / 10 ** (level_db / 20)
        write_bin(tmp_path / f"{name}.bin", target[None], (target + leaks[name] * other)[None], 0.5 * (target + other))
    (tmp_path / "genders").write_text("1 m\n2 f\n3 m\n")
    scores = tmp_path / "scores"
    flags = ["--talkers=1", "--metrics=si_sdr", f"--genders_file={tmp_path / 'genders'}", "--num_workers=1"]
    run = run_script(f"--estimates=final={tmp_path}", f"--output_folder={scores}", *flags)
    assert run.returncode == 0, run.stderr
    summary = json.loads((scores / "summary.json").read_text())
    assert summary["systems"][1]["means"]["confusion"] == 0.25
    rows = read_table((scores / "scores.csv").read_text())
    values = {row["utterance"]: float(row["si_sdr"]) for row in rows if row["system"] == "final"}
    expected = {
        "genders": {
            "female against male": ["2_1_000001"],
            "male against female": ["1_2_000000"],
            "male against male": ["1_3_000002", "3_1_000003"],
        },
        "mixture": {"0 dB": ["1_2_000000"], "5 dB": ["2_1_000001", "1_3_000002", "3_1_000003"]},
    }
    for kind, groups in expected.items():
        assert [group["group"] for group in summary["groups"][kind]] == list(groups)
        for group, names in zip(summary["groups"][kind], groups.values()):
            assert group["talkers"] == len(names)
            mean = np.mean([values[name] for name in names])
            assert group["systems"]["final"]["si_sdr"] == pytest.approx(mean, abs=2e-6)
    assert "male against male" in run.stdout and "25.0 %" in run.stdout
