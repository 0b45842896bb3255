"""The scripts of Deep CASA as a person runs them, on seconds of pseudo speech and the smallest nets."""

import csv
import os
import shutil

import numpy as np
import pytest
import soundfile
import speech
from golden_case import write_saver_checkpoint

from feat.corpora import cache
from feat.corpora.lists import mixture_paths
from models.deep_casa.dense_unet import DenseUNet
from nn.checkpoints import deep_casa
from nn.checkpoints import ours as checkpoint

EXP = "exp/deep_casa_wsj"
SIMUL = speech.SIMUL | dict(epoch=1)
SEQ = speech.SEQ | dict(epoch=1)


def corpus_folder(tmp_path_factory, name, **options):
    folder = tmp_path_factory.mktemp(name)
    return folder, speech.make_corpus(folder, dict(tr=3, cv=1, tt=2), **options)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """(folder, lists) after the whole non-causal pipeline, half of it in processes of their own."""
    folder, lists = corpus_folder(tmp_path_factory, "pipeline")

    def run(script, *flags, runner=speech.run, **named):
        return speech.succeed(folder, script, *flags, runner=runner, **named)

    here = dict(runner=speech.run_here)
    run("feat/feat_gen.py", **speech.STFT)
    run("nn/simul_group.py", time_stamp="simul", **SIMUL | dict(pictures=1))
    run("nn/simul_group.py", is_deploy=2, resume_model=f"{EXP}/models/simul/best", **SIMUL | here)
    run("nn/seq_group.py", time_stamp="seq", **SEQ | dict(pictures=1))
    run("nn/simul_group.py", is_deploy=1, time_stamp="simul", **SIMUL | here)
    run("nn/seq_group.py", is_deploy=1, resume_model=f"{EXP}/models/seq/deep_casa_wsj_model.ckpt_step_3", **SEQ)
    run(
        "nn/evaluate.py",
        f"--estimates=oracle={EXP}/output_tt/oracle_order",
        f"--estimates=final={EXP}/output_tt/files",
        metrics="si_sdr,sdr",
        num_workers=1,
        output_folder="scores",
    )
    return folder, lists


def read_bin(folder, output, name, talkers=2):
    return np.fromfile(folder / EXP / "output_tt" / output / f"{name}.bin", "<f4").reshape(3 * talkers, -1)


def test_outputs_are_whole(pipeline):
    folder, lists = pipeline
    for name in lists["tt"]:
        paths = mixture_paths(str(folder / "data"), "tt", name)
        signals = {source: soundfile.read(path, dtype="float32")[0] for source, path in paths.items()}
        for output in ("oracle_order", "files"):
            rows = read_bin(folder, output, name)
            np.testing.assert_array_equal(rows[[0, 1, 4, 5]], [signals[s] for s in ("s1", "s2", "mix", "mix")])
            assert np.isfinite(rows).all() and rows[2:4].any(axis=1).all()
            for i in range(2):
                wav, rate = soundfile.read(folder / EXP / "output_tt" / output / f"{name}_s{i + 1}.wav")
                assert rate == speech.RATE
                np.testing.assert_allclose(wav, rows[2 + i] / max(1, np.abs(rows[2:4]).max()), atol=1e-4)
        stored = np.load(folder / EXP / "output_tt/files" / f"{name}_assign.npz")
        frames = np.load(cache.feature_path(folder / EXP / "feat", "tt", name)).shape[1]
        assert {stored[key].shape for key in ("assign", "oracle", "weight")} == {(frames,)}


def test_scores_and_pictures_are_there(pipeline):
    folder, lists = pipeline
    with open(folder / "scores" / "scores.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 * len(lists["tt"])  # mixture and two systems, two talkers
    for stage in ("simul", "seq"):
        run_folder = folder / EXP / "models" / stage
        assert [path.name for path in (run_folder / "pictures").iterdir()] == [f"{lists['cv'][0]}.png"]
        assert list((run_folder / "tensorboard").iterdir())
        assert (run_folder / "config.json").exists() and "--n_layers=1" in (run_folder / "flags.txt").read_text()


def test_exporting_again_makes_only_what_is_broken(pipeline):
    folder, lists = pipeline
    path = cache.estimate_path(folder / EXP / "feat", "tr", lists["tr"][0])
    whole = open(path, "rb").read()
    os.truncate(path, 500)
    line = speech.refuse(folder, "nn/seq_group.py", time_stamp="cut", **SEQ)
    assert path.rsplit("/", 1)[1] in line and "run nn/simul_group.py --is_deploy 2" in line
    printed = speech.succeed(folder, "nn/simul_group.py", is_deploy=2, time_stamp="simul", **SIMUL)
    assert "1 estimates to write" in printed
    assert open(path, "rb").read() == whole


def test_estimates_of_another_checkpoint_or_of_older_features_are_made_again(pipeline):
    folder, lists = pipeline
    flags = SIMUL | dict(is_deploy=2, time_stamp="simul")
    first = dict(resume_model=f"{EXP}/models/simul/deep_casa_wsj_model.ckpt_step_1")
    path = cache.estimate_path(folder / EXP / "feat", "tr", lists["tr"][0])
    whole = open(path, "rb").read()
    speech.succeed(folder, "nn/simul_group.py", export_sets="tr", **flags | first)
    assert open(path, "rb").read() != whole
    speech.succeed(folder, "nn/simul_group.py", export_sets="cv", **flags)
    assert "5 estimates to write" in speech.succeed(folder, "nn/simul_group.py", **flags)
    assert open(path, "rb").read() == whole
    os.utime(cache.feature_path(folder / EXP / "feat", "tr", lists["tr"][1]))
    assert "1 estimates to write" in speech.succeed(folder, "nn/simul_group.py", **flags)


def test_features_of_other_wavs_are_not_scored(pipeline):
    folder, lists = pipeline
    name = lists["tt"][0]
    paths = mixture_paths(str(folder / "data"), "tt", name).values()
    kept = [open(path, "rb").read() for path in paths]
    speech.write_mixture(folder, "tt", name, [speech.voice(0, i, 1.5) for i in range(2)])
    line = speech.refuse(folder, "nn/simul_group.py", is_deploy=1, time_stamp="simul", **SIMUL)
    assert name in line and "run feat/feat_gen.py again" in line
    for path, content in zip(paths, kept):
        with open(path, "wb") as file:
            file.write(content)
    speech.succeed(folder, "nn/simul_group.py", is_deploy=1, time_stamp="simul", **SIMUL)


def test_resume_model_is_not_overridden_by_the_run_folder(pipeline):
    folder, lists = pipeline
    before = {name: read_bin(folder, "oracle_order", name) for name in lists["tt"]}
    first = f"{EXP}/models/simul/deep_casa_wsj_model.ckpt_step_1"
    speech.succeed(folder, "nn/simul_group.py", is_deploy=1, time_stamp="simul", resume_model=first, **SIMUL)
    untrained = {name: read_bin(folder, "oracle_order", name) for name in lists["tt"]}
    speech.succeed(folder, "nn/simul_group.py", is_deploy=1, time_stamp="simul", **SIMUL)
    for name in lists["tt"]:
        assert not np.array_equal(untrained[name][2:4], before[name][2:4])
        np.testing.assert_array_equal(read_bin(folder, "oracle_order", name), before[name])


@pytest.mark.parametrize("stage, output", [("simul", "oracle_order"), ("seq", "files")])
def test_inference_goes_on_where_it_ended(pipeline, stage, output):
    folder, lists = pipeline
    first, last = lists["tt"]
    script, flags = f"nn/{stage}_group.py", dict(is_deploy=1, time_stamp=stage) | (SIMUL if stage == "simul" else SEQ)
    speech.succeed(folder, script, **flags)
    before = {name: read_bin(folder, output, name) for name in lists["tt"]}
    at = folder / EXP / "output_tt" / output
    speech.refuse_once(folder, at / f"{last}_s1.wav", script, **flags)
    printed = speech.succeed(folder, script, **flags)
    assert "going on, 1 mixtures are done" in printed and "2 mixtures separated" in printed
    assert os.stat(at / f"{first}.bin").st_mtime_ns < os.stat(at / f"{last}_s1.wav").st_mtime_ns
    assert not (at / "unfinished.jsonl").exists()
    for name in lists["tt"]:
        np.testing.assert_array_equal(read_bin(folder, output, name), before[name])
    # With other flags nothing of it counts.
    speech.refuse_once(folder, at / f"{last}_s1.wav", script, **flags)
    assert "going on" not in speech.succeed(folder, script, **flags | {"seed": 5})


@pytest.mark.parametrize("kind", ["adam", "momentum"])
def test_training_goes_on_from_the_originals_checkpoint_with_its_moments(pipeline, kind):
    folder, _ = pipeline
    model = DenseUNet(channels=2, scales=1, bins=33)
    random = np.random.default_rng(0)
    arrays = {"beta1_power": np.float32(0.9**8), "beta2_power": np.float32(0.999**8)} if kind == "adam" else {}
    slots = {"adam": ["Adam", "Adam_1"], "momentum": ["Momentum"]}[kind]
    for weight in model.trainable_variables:
        names = deep_casa.reference_names(model)[weight.path.split("/", 1)[1]]
        names = [names] if isinstance(names, str) else names
        for name in names:
            shape = (*weight.shape[:-1], weight.shape[-1] // len(names))
            arrays[name] = 0.1 * random.standard_normal(shape).astype(np.float32)
            for slot in slots:
                arrays[f"{name}/{slot}"] = random.uniform(0, 1, shape).astype(np.float32)
    prefix = write_saver_checkpoint(str(folder / f"original_{kind}" / "deep_casa_wsj_model.ckpt_step_8"), arrays)
    run = SIMUL | dict(time_stamp=f"warm_{kind}", optimizer=kind)
    printed = speech.succeed(folder, "nn/simul_group.py", resume_model=prefix, **run)
    assert "weights and optimiser restored" in printed
    ours = checkpoint.Reader(str(folder / EXP / f"models/warm_{kind}/deep_casa_wsj_model.ckpt_step_1"))
    if kind == "adam":
        assert int(ours(checkpoint._ours("optimizer", "adam/iteration"))) == 7
    slot = f"{kind}/dense_unet_encoder_0_conv_0_kernel_{'velocity' if kind == 'adam' else 'momentum'}"
    theirs = arrays[f"separator/conv2d/kernel/{slots[-1]}"]
    np.testing.assert_array_equal(ours(checkpoint._ours("optimizer", slot)), theirs)
    # Beside nothing of ours it is no run to go on with.
    shutil.copytree(folder / f"original_{kind}", folder / EXP / "models" / f"foreign_{kind}")
    line = speech.refuse(folder, "nn/simul_group.py", **run | dict(time_stamp=f"foreign_{kind}"))
    assert "not from this training loop" in line


def test_everything_without_feature_files(tmp_path_factory):
    folder, lists = corpus_folder(tmp_path_factory, "on_the_fly")
    speech.succeed(folder, "nn/simul_group.py", "--on_the_fly", time_stamp="simul", **SIMUL)
    simul = f"{EXP}/models/simul/best"
    seq = SEQ | dict(time_stamp="seq", simul_model=simul)
    assert "need --simul_model" in speech.refuse(folder, "nn/seq_group.py", "--on_the_fly", **SEQ)
    gone = speech.refuse(folder, "nn/seq_group.py", "--on_the_fly", **seq | dict(simul_model="none/best"))
    assert "none/best: no checkpoint here" in gone
    speech.succeed(folder, "nn/seq_group.py", "--on_the_fly", **seq)
    speech.succeed(folder, "nn/seq_group.py", "--on_the_fly", is_deploy=1, **seq)
    assert not (folder / EXP / "feat").exists()
    on_the_fly = {name: read_bin(folder, "files", name) for name in lists["tt"]}
    # By way of the files the answers are the same.
    speech.succeed(folder, "feat/feat_gen.py", num_workers=1, **speech.STFT)
    speech.succeed(folder, "nn/simul_group.py", is_deploy=2, time_stamp="simul", **SIMUL)
    speech.succeed(folder, "nn/seq_group.py", is_deploy=1, time_stamp="seq", **SEQ)
    for name, rows in on_the_fly.items():
        np.testing.assert_allclose(read_bin(folder, "files", name), rows, atol=1e-4)


def test_causal(tmp_path_factory):
    folder, lists = corpus_folder(tmp_path_factory, "causal")
    speech.succeed(folder, "feat/feat_gen.py", num_workers=1, **speech.STFT)
    simul = SIMUL | dict(time_stamp="simul", batch_frames=50, batch_size=2)
    speech.succeed(folder, "nn/simul_group.py", "--causal", **simul)
    speech.succeed(folder, "nn/simul_group.py", "--causal", is_deploy=2, **simul)
    speech.succeed(folder, "nn/seq_group.py", "--causal", time_stamp="seq", **SEQ)
    speech.succeed(folder, "nn/seq_group.py", "--causal", is_deploy=1, time_stamp="seq", **SEQ)
    for name in lists["tt"]:
        assert np.isfinite(read_bin(folder, "files", name)).all()
    line = speech.refuse(
        folder, "nn/simul_group.py", "--nocausal", is_deploy=1, resume_model=f"{EXP}/models/simul/best", **SIMUL
    )
    assert "trained with --causal True" in line
    line = speech.refuse(folder, "nn/simul_group.py", resume_model=f"{EXP}/models/simul/best", **SIMUL)
    assert "use the flags that it was trained with" in line
    line = speech.refuse(folder, "nn/seq_group.py", is_deploy=1, resume_model=f"{EXP}/models/simul/best", **SEQ)
    assert "holds dense_unet, but this script needs sequential_grouping" in line


def test_three_talkers_with_dynamic_mixing(tmp_path_factory):
    folder, lists = corpus_folder(tmp_path_factory, "three", talkers=3)
    three = dict(talkers=3, segment_seconds=0.4)
    simul = SIMUL | three | dict(time_stamp="simul")
    speech.succeed(folder, "feat/feat_gen.py", num_workers=1, talkers=3, **speech.STFT)
    speech.succeed(folder, "nn/simul_group.py", "--dynamic_mixing", **simul)
    speech.succeed(folder, "nn/simul_group.py", is_deploy=2, export_sets="cv,tt", **simul)
    seq = SEQ | three | dict(time_stamp="seq", simul_model=f"{EXP}/models/simul/best")
    speech.succeed(folder, "nn/seq_group.py", "--dynamic_mixing", **seq)
    speech.succeed(folder, "nn/seq_group.py", is_deploy=1, time_stamp="seq", talkers=3, **SEQ)
    for name in lists["tt"]:
        assert np.isfinite(read_bin(folder, "files", name, talkers=3)).all()
    for deploy in (1, 2):  # without --talkers, whose lists are of two
        line = speech.refuse(folder, "nn/simul_group.py", is_deploy=deploy, time_stamp="simul", **SIMUL)
        assert "trained with --talkers 3, but --talkers is 2; give the same" in line


def test_one_line_list_utterance_pit_and_silence(tmp_path):
    """A list of one mixture, one talker of which is silent, trains, saves and can be separated."""
    lists = speech.make_corpus(tmp_path, dict(tr=1, cv=1, tt=1))
    speech.write_mixture(tmp_path, "tr", lists["tr"][0], [speech.voice(0, 0, 0.5), np.zeros(4000, np.float32)])
    flags = SIMUL | dict(time_stamp="simul", pit="utterance", epoch=3)
    printed = speech.succeed(tmp_path, "nn/simul_group.py", "--on_the_fly", **flags)
    assert "nan" not in printed and "best validation" in printed
    arrays = speech.checkpoint_arrays(tmp_path / EXP / "models/simul/deep_casa_wsj_model.ckpt_step_3")
    arrays = [array for array in arrays.values() if getattr(array, "dtype", None) == np.float32]
    assert arrays and all(np.isfinite(array).all() for array in arrays)
    frame = dict(pit="frame", is_deploy=1)
    line = speech.refuse(tmp_path, "nn/simul_group.py", "--on_the_fly", **flags | frame)
    assert "trained with --pit utterance, but --pit frame was given" in line
    del flags["pit"]
    speech.succeed(tmp_path, "nn/simul_group.py", "--on_the_fly", is_deploy=1, **flags)
    assert np.isfinite(read_bin(tmp_path, "files", lists["tt"][0])).all()


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (dict(batch_size=4), "3 training example(s) are fewer than the 4 of a step"),
        (dict(resume_model="nowhere/best"), "nowhere/best: no checkpoint here"),
        (dict(resume_model="nowhere/best", is_deploy=1), "nowhere/best: no checkpoint here"),
        (dict(time_stamp="none", is_deploy=1), "no such checkpoint; train first"),
        (dict(hop_size=16), "run feat/feat_gen.py with the same flags"),
        (dict(fft_size=128), "run feat/feat_gen.py with the same flags"),
        (dict(wav_list_folder="elsewhere"), "no such list"),
        (dict(exp_name="taken/up"), "cannot be written"),
        (dict(n_channels=3, resume_model=f"{EXP}/models/simul/best"), "use the flags that it was trained with"),
        (dict(n_layers=2, resume_model=f"{EXP}/models/simul/best"), "use the flags that it was trained with"),
        (dict(n_layers=2, resume_model=f"{EXP}/models/simul/best", is_deploy=1), "trained with --n_layers 1"),
        (dict(resume_model=f"{EXP}/models/seq/best"), "holds sequential_grouping, but this script needs dense_unet"),
        (dict(segment_seconds=0.001), "shorter than a frame step"),
        (dict(n_layers=7, resume_model=f"{EXP}/models/simul/best", is_deploy=1), "trained with --n_layers 1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_simul_group_refuses(pipeline, flags, said):
    folder, _ = pipeline
    extra = []
    if "exp_name" in flags:
        (folder / "exp" / "taken").write_text("in the way")
        extra = ["--on_the_fly"]
    assert said in speech.refuse(folder, "nn/simul_group.py", *extra, **SIMUL | dict(time_stamp="new") | flags)


def test_a_first_stage_that_is_none_is_refused(pipeline):
    folder, _ = pipeline
    flags = SEQ | dict(is_deploy=1, time_stamp="seq", simul_model=f"{EXP}/models/seq/best")
    line = speech.refuse(folder, "nn/seq_group.py", "--on_the_fly", **flags)
    assert "holds sequential_grouping, but this script needs dense_unet" in line


def test_damaged_checkpoint_for_inference(pipeline):
    folder, _ = pipeline
    for path in (folder / EXP / "models/simul").glob("*step_1.*"):
        shutil.copy(path, folder / path.name)
    shutil.copy(folder / EXP / "models/simul/config.json", folder)
    data = folder / "deep_casa_wsj_model.ckpt_step_1.data-00000-of-00001"
    os.truncate(data, 1000)
    prefix = str(data).removesuffix(checkpoint.DATA)
    line = speech.refuse(folder, "nn/simul_group.py", is_deploy=1, resume_model=prefix, **SIMUL)
    assert prefix in line and "damaged or half-written" in line


@pytest.mark.parametrize("kind", ["feature", "wave"])
def test_names_a_truncated_feature_file(pipeline, kind):
    folder, lists = pipeline
    path = getattr(cache, f"{kind}_path")(str(folder / EXP / "feat"), "tr", lists["tr"][1])
    whole = open(path, "rb").read()
    os.truncate(path, len(whole) // 2)
    line = speech.refuse(folder, "nn/simul_group.py", time_stamp="new", **SIMUL)
    with open(path, "wb") as file:
        file.write(whole)
    assert os.path.basename(path) in line and "truncated" in line and "run feat/feat_gen.py" in line


@pytest.mark.parametrize("on_the_fly", [False, True], ids=["features", "wavs"])
def test_names_a_file_that_goes_bad_during_training(pipeline, monkeypatch, on_the_fly):
    """The file is cut after the check at the start, when the optimiser is made."""
    folder, lists = pipeline
    from nn.training import flags as training_flags

    name = lists["tr"][1]
    path = (
        mixture_paths(str(folder / "data"), "tr", name)["s2"]
        if on_the_fly
        else cache.feature_path(str(folder / EXP / "feat"), "tr", name)
    )
    whole = open(path, "rb").read()
    options = training_flags.options_from_flags

    def cut(strategy, task, **named):
        os.truncate(path, len(whole) // 2)
        return options(strategy, task, **named)

    monkeypatch.setattr(training_flags, "options_from_flags", cut)
    try:
        flags = ["--on_the_fly"] if on_the_fly else []
        line = speech.refuse(
            folder, "nn/simul_group.py", *flags, time_stamp=f"bad_{on_the_fly}", **SIMUL | dict(epoch=2)
        )
    finally:
        with open(path, "wb") as file:
            file.write(whole)
    assert os.path.basename(path) in line and "truncated" in line
