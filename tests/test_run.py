"""run.sh as a person starts it, in a copy of the repository that counts as installed."""

import os
import shlex
import shutil
import subprocess
import sys

import pytest
import speech

from feat.corpora.lists import SETS
from nn import pipeline
from nn.systems.recipe import PRESETS, Given


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    for name in ("feat", "models", "nn"):
        shutil.copytree(speech.ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(speech.ROOT / "run.sh", folder)
    shutil.copy(speech.ROOT / "setup.py", folder)
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    for extras in ("corpus", "corpus,faces"):
        shutil.copy(speech.ROOT / "setup.py", folder / f".venv/installed_{extras}")
    return folder


def run(repository, *arguments, **named):
    return subprocess.run(
        ["./run.sh", *arguments, *(f"--{name}={value}" for name, value in named.items())],
        cwd=repository,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def planner(monkeypatch, capsys, tmp_path):
    """Calls nn/pipeline.py within this process, which has TensorFlow already; gives exit code, stdout and stderr."""
    monkeypatch.setattr(pipeline, "apart", lambda function, *arguments: function(*arguments))
    monkeypatch.chdir(tmp_path)

    def run_here(*arguments):
        capsys.readouterr()
        code = pipeline.main(arguments)
        return code, *capsys.readouterr()

    return run_here


def plan(planner, *arguments, recipe="deep_casa"):
    """{number of a stage: [[script, flag, ...]]} of a recipe, and what was printed."""
    code, out, err = planner(recipe, *arguments, "--plan")
    assert code == 0, out + err
    stages = {}
    for line in out.splitlines():
        if line.startswith("== stage "):
            commands = stages.setdefault(int(line.split()[2].rstrip(":")), [])
        elif line.startswith("+ "):
            commands.append(shlex.split(line)[2:])
    return stages, out


def flag_of(command, name):
    """The last value of a flag of a command, or None."""
    return dict(flag.removeprefix("--").split("=", 1) for flag in command if "=" in flag).get(name)


SIMUL_MODEL = "exp/deep_casa/models/test_simul/best"


@pytest.mark.parametrize(
    "arguments, features, estimates, simul_model",
    [
        ([], "cv,tt", "cv,tt", SIMUL_MODEL),
        (["--nodynamic_mixing"], "tr,cv,tt", "tr,cv,tt", None),
        (["--dynamic_mixing=0"], "tr,cv,tt", "tr,cv,tt", None),
        (["--simul.nodynamic_mixing"], "tr,cv,tt", "cv,tt", SIMUL_MODEL),
        (["--seq.nodynamic_mixing"], "tr,cv,tt", "tr,cv,tt", None),
        (["--nodynamic_mixing", "--dynamic_mixing", "true"], "cv,tt", "cv,tt", SIMUL_MODEL),
        (["--data_folder=d", "--wav_list_folder=l"], "cv,tt", "cv,tt", SIMUL_MODEL),
        (["--preset=original"], "tr,cv,tt", "tr,cv,tt", None),
        (["--preset=original", "--on_the_fly"], None, None, SIMUL_MODEL),
        (["--preset=original", "--on_the_fly=True"], None, None, SIMUL_MODEL),
        (["--preset=original", "--on_the_fly=false"], "tr,cv,tt", "tr,cv,tt", None),
        (["--preset=original", "--seq.on_the_fly"], "tr,cv,tt", None, SIMUL_MODEL),
        (["--preset=original", "--simul.on_the_fly"], "tr,cv,tt", "tr,cv,tt", None),
        (["--on_the_fly", "--simul.noon_the_fly"], "cv,tt", None, SIMUL_MODEL),
        (["--preset=original", "--seq.dynamic_mixing", "--seq.segment_seconds=4"], "tr,cv,tt", "cv,tt", SIMUL_MODEL),
    ],
)
def test_deep_casa_makes_what_its_stages_read(planner, arguments, features, estimates, simul_model):
    stages, _ = plan(planner, *arguments)
    assert [flag_of(command, "sets") for command in stages[2]] == [features] * bool(features)
    assert [flag_of(command, "export_sets") for command in stages[4]] == [estimates] * bool(estimates)
    for command in (*stages[5], stages[6][1]):
        assert command[0] == "nn/seq_group.py" and flag_of(command, "simul_model") == simul_model


def test_deep_casa_of_one_stage(planner):
    stages, said = plan(planner, "--pit", "utterance", "--preset=original", "--seq.dynamic_mixing")
    assert list(stages) == [1, 2, 3, 6, 7] and len(stages[6]) == 1
    assert "models/test_simul/pictures" in said and "test_seq" not in said


def test_deep_casa(repository):
    """Each stage reads its mixtures another way; what another list left in the output does not count."""
    sizes = {"tr_talkers": 2, "cv_talkers": 2, "tt_talkers": 2, "tr_mixtures": 2, "cv_mixtures": 1, "tt_mixtures": 2}
    sizes |= {"n_channels": 2, "n_layers": 1, "n_tcn_block": 1, "n_dilation_each_block": 2, "n_dilated_units": 4}
    sizes |= {"n_bottle": 4, "embedding_dim": 3, "fft_size": 64, "hop_size": 32, "epoch": 1, "batch_size": 1}
    sizes |= {"simul.segment_seconds": 0, "seq.segment_seconds": 0.5, "num_workers": 1, "pictures": 0,
              "metrics": "si_sdr", "simul.dynamic_mixing": "false", "seq.on_the_fly": "true"}  # fmt: skip
    for folder in ("files", "oracle_order"):
        left = repository / "exp/casa/output_tt" / folder / "gone.bin"
        left.parent.mkdir(parents=True)
        left.write_bytes(b"of another list")
    done = run(repository, "deep_casa", "--exp_name", "casa", **sizes)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (repository / "exp/casa/scores/table.txt").read_text().startswith("2 mixtures of 2 talkers, set tt")


def test_spex_plus(repository):
    sizes = {"tr_talkers": 2, "cv_talkers": 2, "tt_talkers": 2, "utterances_per_talker": 2, "tt.nfiles": 2}
    sizes |= {"cv.nfiles": 1, "n_filters": 8, "n_bottle": 6, "n_units": 8, "n_blocks": 1, "n_repeats": 1}
    sizes |= {"epoch": 1, "epoch_mixtures": 4, "segment_seconds": 0.5, "metrics": "si_sdr", "num_workers": 1,
              "pictures": 0}  # fmt: skip
    done = run(repository, "spex_plus", "--exp_name", "tiny", **sizes)
    assert done.returncode == 0, done.stdout + done.stderr
    said = dict(line.rsplit("  ", 1) for line in done.stdout.splitlines() if "exp/tiny" in line and "  " in line)
    said = {name.strip(): path.split()[-1] for name, path in said.items()}
    assert len(list((repository / said["extracted wavs"]).glob("*.wav"))) == 2
    for what in ("TensorBoard logs", "scores"):
        assert any((repository / said[what]).iterdir())
    assert "SI-SDRi" in done.stdout


def test_binaural(repository):
    sizes = {"tr_talkers": 3, "cv_talkers": 3, "tt_talkers": 3, "utterances_per_talker": 1, "cv_mixtures": 1}
    sizes |= {"tt_mixtures": 2, "n_filters": 8, "n_bottle": 6, "n_units": 8, "n_blocks": 1, "n_repeats": 1}
    sizes |= {"talkers": 3, "epoch": 1, "epoch_mixtures": 4, "segment_seconds": 0.5, "num_workers": 1, "pictures": 0}
    done = run(repository, "binaural", "--exp_name", "ears", "--configurations=independent,parallel", **sizes)
    assert done.returncode == 0, done.stdout + done.stderr
    for variant in ("independent", "parallel"):
        lines = [line for line in done.stdout.splitlines() if f"exp/ears_{variant}" in line and "  " in line]
        said = {name.strip(): path.split()[-1] for name, path in (line.rsplit("  ", 1) for line in lines)}
        # Of either mixture itself, three talkers and three estimates.
        assert len(list((repository / said["separated wavs"]).glob("*.wav"))) == 14
        for what in ("TensorBoard logs", "scores"):
            assert any((repository / said[what]).iterdir())
    table = (repository / "exp/ears_configurations/table.txt").read_text()
    assert done.stdout.endswith(table)
    head, _, *rows = [line for line in table.splitlines() if line.startswith("|")]
    assert "SNRi (dB)" in head and "Delta ITD (us)" in head
    assert [row.split()[1] for row in rows] == ["ears_independent", "ears_parallel"]


def test_looking_to_listen(repository):
    sizes = {"tr_talkers": 2, "cv_talkers": 2, "tt_talkers": 2, "segments": 1, "train_mixtures": 1, "val_mixtures": 1}
    sizes |= {"test_mixtures": 1, "n_channels": 2, "n_last_channels": 2, "n_video_channels": 2, "n_lstm_units": 2}
    sizes |= {"n_units": 4, "epoch": 1, "epoch_mixtures": 4, "segment_seconds": 0.5, "num_workers": 1, "pictures": 0}
    done = run(repository, "looking_to_listen", "--exp_name", "seen", **sizes)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "faces exchanged" in done.stdout
    assert len(list((repository / "exp/seen/output_test").rglob("*.wav"))) >= 2
    assert len(list((repository / "exp/seen/conversation").glob("*.mp4"))) == 2
    assert any((repository / "exp/seen/models/test/tensorboard").iterdir())


def test_diffsep(repository):
    sizes = {"tr_talkers": 2, "cv_talkers": 2, "tt_talkers": 2, "utterances_per_talker": 1, "cv_mixtures": 1}
    sizes |= {"tt_mixtures": 1, "train_recordings": 2, "test_recordings": 1, "num_workers": 1, "cv_utterances": 1}
    sizes |= {"backbone": "cdiffuse", "residual_layers": 1, "residual_channels": 4, "epoch": 1, "epoch_mixtures": 8}
    sizes |= {"segment_seconds": 0.5, "batch_size": 4, "pictures": 0, "steps": 2, "solver": "first", "limit": 1}
    for stages in ("--stop_stage=1", "--stage=4"):
        done = run(repository, "diffsep", "--exp_name", "diffusion", stages, **sizes)
        assert done.returncode == 0, done.stdout + done.stderr
    # Of the mixtures and the noisy speech of every set that is needed.
    assert len(list((repository / "diffsep").glob("mixtures/2speakers/wav8k/max/*/mix/*.wav"))) == 2
    (folder,) = (repository / "exp/diffusion/results").glob("test_enhancement_diffusion_model*_N-2_*_solver-first")
    assert (folder / "test_summary.json").exists() and (folder / "fig/test/evo_0000.pdf").exists()
    assert f"{folder.name}, test: 1 recordings, SI-SDR" in done.stdout and "2 calls" in done.stdout
    assert any((repository / "exp/diffusion/models/test_enhancement/tensorboard").iterdir())


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["spex_plus", "--n_layers", "3"], "--n_layers: no script of the pipeline has this flag"),
        (["spex_plus", "--learning_rat", "1"], "--learning_rat: no script of the pipeline has this flag. Did you mean"),
        (["deep_casa", "--seq.embeding_dim=1"], "Did you mean --embedding_dim?"),
        (["deep_casa", "--simul.embedding_dim=1"], "--embedding_dim: no script of the pipeline has this flag"),
        (["spex_plus", "--tr.output_folder=x"], "--output_folder is set by the stages"),
        (["spex_plus", "--preset", "large"], "--preset large: there are small and original"),
        (["spex_plus", "--dynamic_mixing=maybe"], "--dynamic_mixing=maybe: should be true or false"),
        (["spex_plus", "--sample_rate=fast"], "--sample_rate fast: should be a whole number"),
        (["deep_casa", "--n_blocks", "3"], "--n_blocks: no script of the pipeline has this flag"),
        (["deep_casa", "--simul.epoch", "three"], "nn/simul_group.py: flag --epoch=three: "),
        (["deep_casa", "stray"], "stray: unexpected"),
        (["deep_casa", "--stage", "five"], "--stage five: should be the number of a stage"),
        (["deep_casa", "--stop_stage="], "--stop_stage : should be the number of a stage"),
        (["spex_plus", "--stop_stage=-1"], "--stop_stage -1: should be the number of a stage"),
        (["deep_casa", "--exp_name", "--stage=1"], "--exp_name: a value is missing"),
        (["binaural", "--kind", "noise", "--talkers", "3"], "--kind noise does not go with --talkers 3"),
        (["binaural", "--configurations=all", "--variant=cross"], "--variant does not go with --configurations"),
        (["binaural", "--configurations=cross,loud"], "nn/binaural_tasnet.py: flag --variant=loud: "),
        (["diffsep", "--corpus_root", "x"], "--corpus_root is set by the stages"),
        (["separate"], "usage: ./run.sh deep_casa"),
    ],
)
def test_refuses(planner, monkeypatch, arguments, said):
    monkeypatch.setattr(pipeline, "execute", None)  # nothing is installed or run
    code, out, err = planner(*arguments, "--install")
    assert code == 1 and not out
    assert err.startswith("error: ") and said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["deep_casa", "--learning_rat=1"], "--learning_rat: no script of the pipeline has this flag. Did you mean "),
        (["separate"], "usage: ./run.sh deep_casa"),
    ],
)
def test_refuses_as_a_person_sees_it(repository, arguments, said):
    done = run(repository, *arguments)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("error: ") and said in done.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_lists_the_recipes(repository, arguments):
    done = run(repository, *arguments)
    assert done.returncode == 0 and not done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith("  ")}
    assert list(lines) == ["deep_casa", "spex_plus", "binaural_tasnet", "looking_to_listen", "diffsep"]
    assert all(" minutes" in line and " in exp/" in line for line in lines.values())


def test_describes_a_recipe(planner):
    code, out, _ = planner("binaural", "--help")
    assert code == 0 and "4  separation and evaluation" in out and "--configurations" in out


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("recipe", pipeline.recipes(), ids=lambda recipe: recipe.name)
def test_commands_have_the_flags_of_their_recipe(recipe, preset):
    values = recipe.values(Given([("preset", preset)]))
    requests = [(command.path, "", (), command.own_flags(values)) for command in recipe.commands()]
    assert not any(pipeline.share_out(requests, []))


OFF = ["--dynamic_mixing=false", "--dynamic_mixing=0", "--nodynamic_mixing", "--dynamic_mixing --dynamic_mixing=F"]


@pytest.mark.parametrize("off", OFF)
def test_spex_plus_without_dynamic_mixing(planner, off):
    stages, _ = plan(planner, *off.split(), recipe="spex_plus")
    assert [flag_of(command, "output_folder") for command in stages[2]] == [f"triplets/{name}" for name in SETS]
    (training,) = stages[3]
    assert "--dynamic_mixing" not in training and "--both_talkers" not in training
    assert flag_of(training, "corpus_folder") is None
    stages, _ = plan(planner, recipe="spex_plus")
    assert len(stages[2]) == 2 and "--dynamic_mixing" in stages[3][0]


@pytest.mark.parametrize("off", OFF)
def test_binaural_without_dynamic_mixing(planner, off):
    stages, _ = plan(planner, *off.split(), recipe="binaural")
    assert flag_of(stages[2][0], "sets") == "tr,cv,tt"
    assert "--dynamic_mixing" not in stages[3][0] and flag_of(stages[3][0], "corpus_folder") is None
    stages, _ = plan(planner, "--preset=original", "--dynamic_mixing", "TRUE", recipe="binaural_tasnet")
    assert flag_of(stages[2][0], "sets") == "cv,tt" and "--dynamic_mixing" in stages[3][0]


@pytest.mark.parametrize("off", OFF)
def test_looking_to_listen_without_dynamic_mixing(planner, off):
    stages, _ = plan(planner, *off.split(), recipe="looking_to_listen")
    assert "--dynamic_mixing" not in stages[4][0]
    stages, _ = plan(planner, recipe="looking_to_listen")
    assert "--dynamic_mixing" in stages[4][0] and flag_of(stages[5][0], "table") == "test.csv"


def test_diffsep_without_dynamic_mixing(planner):
    stages, _ = plan(planner, "--separation.dynamic_mixing=false", recipe="diffsep")
    assert flag_of(stages[1][1], "sets") == "tr,cv,tt"
    assert "--dynamic_mixing" not in stages[2][0] and "--dynamic_mixing" in stages[4][0]
    stages, _ = plan(planner, "--dynamic_mixing=false", recipe="diffsep")
    assert not any("--dynamic_mixing" in command for commands in stages.values() for command in commands)


def test_flags_reach_the_commands_that_have_them(planner):
    stages, _ = plan(planner, "--epoch=3", "--simul.epoch", "5", "--noweight_histograms", "--tr_mixtures=7")
    assert flag_of(stages[3][0], "epoch") == "5" and flag_of(stages[5][0], "epoch") == "3"
    assert flag_of(stages[1][0], "tr_mixtures") == "7" and "--noweight_histograms" not in stages[1][0]
    assert all("--noweight_histograms" in stages[number][0] for number in (3, 4, 5))
    stages, _ = plan(planner, "--tr_mixtures=7", recipe="diffsep")
    assert [flag_of(command, "tr_mixtures") for command in stages[1]] == ["0", "7", None]


def test_installs_first_and_stops_at_the_first_failure(planner, monkeypatch):
    lines = []
    monkeypatch.setattr(pipeline, "execute", lambda line: lines.append(line) or 3 * (len(lines) == 3))
    code, out, _ = planner("binaural", "--kind=reverb", "--install")
    assert code == 3 and "done in" not in out
    assert lines[0] == ["./run.sh", "install", "corpus,room"]
    assert [line[1] for line in lines[1:]] == ["feat/voices.py", "feat/binaural_mix.py"]


def test_flags_are_read_after_installing_where_nothing_is_there(planner, monkeypatch):
    lines = []

    def apart(function, *arguments):
        if not lines:
            raise pipeline.NotInstalledError("absl is not installed; run ./run.sh install corpus")
        return function(*arguments)

    monkeypatch.setattr(pipeline, "apart", apart)
    monkeypatch.setattr(pipeline, "execute", lambda line: lines.append(line))
    code, out, err = planner("deep_casa", "--epoc=3", "--install")
    assert code == 1 and lines == [["./run.sh", "install", "corpus"]] and "--epoc: no script" in err
    assert planner("deep_casa", "--epoch=3", "--plan", "--install")[0] == 0 and len(lines) == 1


def test_exit_codes_are_those_of_a_shell():
    assert pipeline.execute(["sh", "-c", "exit 3"]) == 3
    assert pipeline.execute(["sh", "-c", "kill -TERM $$"]) == 143


def test_flags_are_read_apart():
    """As in a run, where TensorFlow does not stay in memory."""
    assert pipeline.apart(pipeline.share_out, [("feat/voices.py", "", (), [])], [("", "seed", "--seed=1")]) == [
        ["--seed=1"]
    ]
