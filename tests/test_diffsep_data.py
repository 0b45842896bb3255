"""Data, scores, evaluation and long recordings of diffusion separation."""

import csv
import dataclasses
import json
import os
import shutil

import keras
import numpy as np
import pytest
import soundfile
import speech

from feat.base.files import UserError
from feat.batches import diffsep
from feat.signals.audio import write_pcm16
from feat.signals.noises import write_recordings
from models.diffsep.cdiffuse import CDiffuse
from nn.checkpoints import ours as checkpoint
from nn.scoring import composite, metrics
from nn.systems.diffsep import figures
from nn.systems.diffsep import results as diffsep_results
from nn.systems.separator import Separator

RUN = "exp/tiny/models/test"
RATE = 8000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Mixtures, single talkers, noisy speech made of them, and an untrained network."""
    folder = tmp_path_factory.mktemp("diffsep")
    speech.make_corpus(folder, dict(tr=3, cv=2, tt=3))
    for set_name, talkers in dict(tr=(0, 1), tt=(2, 3)).items():
        for talker in talkers:
            for k in range(2):
                path = folder / "talkers" / set_name / f"t{talker}" / f"t{talker}_{k}.wav"
                write_pcm16(path, speech.voice(talker, k, 0.8 + 0.2 * k), RATE)
    speech.succeed(folder, "feat/vctk_demand.py", corpus_flags=False, **NOISY)
    keras.utils.set_random_seed(0)
    model = CDiffuse(layers=2, channels=4, cycle=2)
    model.output_projection.kernel.assign(np.random.default_rng(0).normal(0, 0.1, model.output_projection.kernel.shape))
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    os.makedirs(folder / RUN)
    sampling = dict(steps=2, snr=0.5, corrector_steps=1)
    checkpoint.write_config(str(folder / RUN), "cdiffuse", model, sample_rate=RATE, sampling=sampling)
    checkpoint.save(str(folder / RUN / "tiny_model.ckpt_step_1"), model, optimizer, {})
    checkpoint.mark_best(str(folder / RUN / "tiny_model.ckpt_step_1"))
    return folder


NOISY = dict(
    corpus_root="talkers", output_folder="noisy", sample_rate=RATE, train_recordings=6, test_recordings=2, num_workers=1
)


@pytest.fixture
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


# Data ---------------------------------------------------------------------------------------------


def noisy(split="train", **options):
    return diffsep.noisy_set("noisy", split, RATE, **options)


def test_noisy_speech_is_speech_and_noise_in_the_ratio_of_the_manifest(inside):
    found = noisy("test")
    with open("noisy/test/manifest.csv", encoding="utf-8", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert set(rows) == set(found.names)
    for line, name in enumerate(found.names):
        mixture, (clean, noise) = found.read(line)
        np.testing.assert_allclose(clean + noise, mixture, atol=1e-6)
        # The manifest's ratio is to the level of the speech above 200 Hz while it is active.
        ratio = 10 * np.log10(np.mean(clean**2) / np.mean(noise**2))
        assert abs(ratio - float(rows[name]["snr_db"])) < 3
        assert rows[name]["utterance"].startswith("tt/")


def test_a_killed_making_of_noisy_speech_goes_on_to_the_same(inside, tmp_path):
    shutil.copytree("noisy", tmp_path / "noisy")
    gone = sorted((tmp_path / "noisy/train/noisy").iterdir())[2]
    before = gone.read_bytes()
    gone.unlink()
    speech.succeed(inside, "feat/vctk_demand.py", corpus_flags=False, **NOISY | {"output_folder": tmp_path / "noisy"})
    assert gone.read_bytes() == before


def test_published_recordings_are_resampled_once_or_when_read(inside, tmp_path):
    for kind in ("noisy", "clean"):
        for split in ("trainset_28spk", "testset"):
            for k in range(2):
                path = tmp_path / "published" / f"{kind}_{split}_wav" / f"p1_{k}.wav"
                write_pcm16(path, speech.voice(k, k + (kind == "noisy"), 0.3, 48000), 48000)
    with pytest.raises(UserError, match="48000 Hz, 16000 Hz is needed"):
        diffsep.noisy_set(tmp_path / "published", "train", 16000)
    read = diffsep.noisy_set(tmp_path / "published", "train", 16000, resampled=True)
    flags = dict(published=tmp_path / "published", output_folder=tmp_path / "cache", num_workers=1)
    speech.succeed(inside, "feat/vctk_demand.py", corpus_flags=False, **flags)
    made = diffsep.noisy_set(tmp_path / "cache", "train", 16000)
    batches = [speech.listed(diffsep.evaluation_batches(x)) for x in (read, made)]
    for ours, theirs in zip(*batches, strict=True):
        assert ours["mixture"].shape == (1, 4800)
        np.testing.assert_allclose(ours["sources"], theirs["sources"], atol=1e-4)


def test_training_and_validation_share_nothing_and_only_what_is_asked_for_is_opened(inside):
    corpora = diffsep.Corpora("enhancement", vctk_demand="noisy", sample_rate=RATE)
    train, val = corpora.open("train"), corpora.open("val")
    assert len(train) == 5 and len(val) == 1 and not set(train.names) & set(val.names)
    assert set(train.names) | set(val.names) == set(noisy().names)
    with pytest.raises(UserError, match="mix_clean: no such file or directory"):
        diffsep.Corpora(librimix="nowhere").open("libri-clean")


@pytest.mark.parametrize("root", ["2speakers", "Libri2Mix", ""])
def test_librimix_in_its_own_folders_and_in_those_of_wsj0_mix(inside, tmp_path, root):
    shutil.copytree("data/2speakers/wav8k/min/tt", tmp_path / root / "wav8k/max/test")
    (tmp_path / root / "wav8k/max/test/mix").rename(tmp_path / root / "wav8k/max/test/mix_both")
    found = diffsep.Corpora(librimix=tmp_path).open("libri-noisy")
    assert len(found) == 3


def test_noise_of_another_in_the_batch(inside):
    found = noisy().first(4)
    options = dict(batch_size=4, seed=3, epoch=0, segment_samples=4000)
    (own,), (other,) = (
        speech.listed(diffsep.training_batches(found, shuffle_noise=shuffle, **options)) for shuffle in (False, True)
    )
    np.testing.assert_array_equal(own["sources"][:, 0], other["sources"][:, 0])
    assert sorted(map(bytes, own["sources"][:, 1])) == sorted(map(bytes, other["sources"][:, 1]))
    assert not np.array_equal(own["sources"][:, 1], other["sources"][:, 1])
    np.testing.assert_allclose(other["mixture"], other["sources"].sum(axis=1), atol=1e-6)


def test_crops_reach_the_last_place_unless_the_reference_leaves_it_out():
    generator = np.random.default_rng(0)

    class Mixtures:
        samples, enhancement = np.array([7, 5, 3]), False

    lines = np.tile(np.arange(3), (200, 1))
    for parity, last in ((False, 2), (True, 1)):
        cut = diffsep.crop(Mixtures, lines, 5, generator, parity)
        assert set(cut.starts[:, 0]) == set(range(last + 1))
        assert not cut.starts[:, 1:].any() and set(cut.samples[:, 2]) == {3}


def test_dynamic_mixtures_add_up_at_the_levels_that_were_drawn(inside):
    utterances = {t: [f"{t}/{t}_{k}.wav" for k in range(2)] for t in ("t0", "t1")}
    noises = write_recordings("made", [f"talkers/tr/{utterances['t0'][0]}"], RATE, per_kind=1, seconds=1)
    for talkers, some in ((2, ()), (1, noises)):
        pool = diffsep.mixing_pool("talkers/tr", utterances, RATE, talkers, some)
        # An error names these files, whatever the pieces of them are.
        drawn = [diffsep.draw_pieces(pool, 6, samples, 1, 0)[0] for samples in (1, 6000)]
        np.testing.assert_array_equal(*drawn)
        batches = diffsep.mixed_batches(pool, 2, 3, 6000, seed=1, epoch=0, snr_db=(5, 5))
        whole, rest = (
            speech.listed(batches),
            speech.listed(diffsep.mixed_batches(pool, 2, 3, 6000, seed=1, epoch=0, snr_db=(5, 5), skip=1)),
        )
        speech.assert_same_batches(whole[1:], rest)
        for batch in whole:
            assert batch["sources"].shape == (2, 2, 6000)
            np.testing.assert_allclose(batch["mixture"], batch["sources"].sum(axis=1), atol=1e-6)
            if talkers == 1:
                power = np.mean(batch["sources"] ** 2, axis=-1)
                np.testing.assert_allclose(10 * np.log10(power[:, 0] / power[:, 1]), 5, atol=0.1)


def test_the_first_mixtures_have_a_man_and_a_woman(inside):
    utterances = {t: [f"{t}/{t}_0.wav"] for t in ("t0", "t1")}
    genders = {"t0": "male", "t1": "female"}
    with pytest.raises(UserError, match="need some of both"):
        diffsep.mixing_pool("talkers/tr", utterances, RATE, genders={"t0": "male"})
    pool = diffsep.mixing_pool("talkers/tr", utterances, RATE, genders=genders)
    crowd = dataclasses.replace(
        pool,
        first=np.arange(6),
        counts=np.ones(6, int),
        genders=np.array(["male", "", "female", "male", "male", "female"]),
    )
    pairs = diffsep.draw_talkers(crowd, 200, np.random.default_rng(0), both_genders=True)
    assert set(map(tuple, pairs)) == {(m, w) for m in (0, 3, 4) for w in (2, 5)}
    for both in (True, False):
        (batch,) = speech.listed(diffsep.mixed_batches(pool, 2, 1, 6000, seed=1, epoch=0, both_genders=both))
        assert np.all(batch["ordered"] == both)


# Scores -------------------------------------------------------------------------------------------


def test_ratios_of_signals_that_are_built_to_have_them():
    s1, s2, artefact = np.eye(3)
    estimates = np.stack([s2 + 0.1 * artefact, s1 + 0.2 * s2 + 0.1 * artefact])
    found, order = metrics.scale_invariant_scores(estimates, np.stack([s1, s2]))
    assert list(order) == [1, 0]
    expected = {"si_sdr": (1 / 0.05, 1 / 0.01), "si_sir": (1 / 0.04, 1e10), "si_sar": (1.04 / 0.01, 1 / 0.01)}
    for name, ratios in expected.items():
        np.testing.assert_allclose(found[name], 10 * np.log10(ratios), atol=1e-6)
    silent, _ = metrics.scale_invariant_scores(0 * estimates, np.stack([s1, s2]), clamp_db=30)
    np.testing.assert_allclose(silent["si_sdr"], -30, atol=0.01)


def test_composite_measures_fall_with_noise():
    clean = speech.voice(0, 1, 1.5, composite.RATE).astype(np.float64)
    noise = np.random.default_rng(0).standard_normal(len(clean))
    rows = [composite.composite(composite.parts(clean, clean + level * noise)) for level in (1e-4, 3e-4, 1e-3)]
    for name in composite.MEASURES:
        assert rows[0][name] > rows[1][name] > rows[2][name]


# Results ------------------------------------------------------------------------------------------


def test_folder_names_tell_all_options_again():
    name = diffsep_results.folder_name("a_b_N-1", 30, 0.5, 1, True, None, solver="heun", t_start=None)
    assert name == "a_b_N-1_N-30_snr-0.5_corrstep-1_denoise-True_schedule-None_solver-heun"
    options = dict(run="a_b_N-1", steps=30, snr=0.5, corrector_steps=1, denoise=True, schedule=None, solver="heun")
    assert diffsep_results.read_folder_name("results/" + name + "/") == options
    assert diffsep_results.read_folder_name("mix") is None


def test_plots_over_result_folders_and_dnsmos_beside_them(tmp_path):
    results = {str(i): {"batch_idx": i, "si_sdr": [[float(i), 2.0]], "pesq": [None, 1.5]} for i in range(4)}
    for steps in (5, 10):
        for snr in (0.3, 0.5):
            where = tmp_path / diffsep_results.folder_name("run", steps, snr, 1)
            summary = diffsep_results.write_results(str(where), "test", results)
    assert summary == {"si_sdr": 1.75, "pesq": 1.5, "number": 4}
    speech.succeed(tmp_path, "nn/systems/diffsep/figures.py", corpus_flags=False, results=".")
    assert (tmp_path / "test_si_sdr.png").stat().st_size > 5000
    chosen = figures.choose_examples(results, "si_sdr")
    assert chosen["bad"] == "0" and chosen["good"] == "3" and chosen["middling"] in "12"
    rows = "\n".join(f"{i},wav/{i // 2:04d}.enh{i % 2}.wav,{3 + i}.5" for i in range(4))
    (where / "test_dnsmos.csv").write_text(",filename,OVRL\n" + rows + "\n")
    speech.succeed(tmp_path, "nn/systems/diffsep/dnsmos.py", corpus_flags=False, results=where)
    merged = json.loads((where / "test_with_dnsmos.json").read_text())
    assert merged["1"]["OVRL"] == [5.5, 6.5] and "OVRL" not in merged["2"]
    assert json.loads((where / "test_summary_with_dnsmos.json").read_text())["OVRL"] == 5.0


# Evaluation ---------------------------------------------------------------------------------------


def evaluate(folder, succeeds=True, **named):
    named = dict(resume_model=RUN + "/best", wsj0_mix="data", mode="min", save_n=1, seed=3) | named
    return (speech.succeed if succeeds else speech.refuse)(
        folder, "nn/diffsep_evaluate.py", "--test", corpus_flags=False, **named
    )


def entries(folder):
    results = diffsep_results.read_results(folder / "test.json")
    return {index: {k: v for k, v in entry.items() if k != "runtime"} for index, entry in results.items()}


def test_evaluation_goes_on_where_it_was_and_draws_the_same_noise_for_a_file(inside):
    evaluate(inside)
    (where,) = (inside / "results").iterdir()
    assert where.name == "test_tiny_model.ckpt_step_1_N-2_snr-0.5_corrstep-1_denoise-True_schedule-None"
    whole = entries(where)
    assert set(whole) == {"0", "1", "2"} and whole["0"]["nfe"] == 4 and len(whole["1"]["stoi"]) == 2
    signals = {path.name: soundfile.read(path)[0] for path in (where / "wav/test").iterdir()}
    assert set(signals) == {f"0000.{kind}.wav" for kind in ("mix", "enh0", "enh1", "tgt0", "tgt1")}
    assert max(np.abs(x).max() for x in signals.values()) == pytest.approx(0.95)
    # What was saved is what was scored.
    estimates, targets = (np.stack([signals[f"0000.{kind}{c}.wav"] for c in (0, 1)]) for kind in ("enh", "tgt"))
    scores, order = metrics.scale_invariant_scores(estimates, targets)
    assert list(order) == [0, 1]
    np.testing.assert_allclose(scores["si_sdr"], whole["0"]["si_sdr"][0], atol=1e-3)
    assert (where / "fig/test/evo_0000.pdf").stat().st_size > 5000
    (where / "records/test/000001.json").unlink()
    evaluate(inside)
    assert entries(where) == whole
    assert "holds results with another seed" in evaluate(inside, False, seed=4)


def test_the_unprocessed_mixture_improves_nothing(inside):
    evaluate(inside, resume_model="__no_proc__")
    summary = json.loads((inside / "results/mix/test_summary.json").read_text())
    assert summary["si_sdri"] == pytest.approx(0, abs=1e-9) and summary["nfe"] == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (dict(n_speakers=3), "trained with --n_speakers 2, but --n_speakers 3 was given"),
        (dict(sample_rate=16000), "trained with --sample_rate 8000"),
        (dict(pesq_mode="wb"), "needs 16000 Hz"),
        (dict(wsj0_mix="nowhere"), "nowhere/2speakers/wav8k/min/tt/mix: no such file or directory"),
        (dict(resume_model="nothing"), "no checkpoint here"),
    ],
)
def test_evaluation_refuses(inside, flags, said):
    assert said in evaluate(inside, False, output_folder="refused", **flags)


# Recordings ---------------------------------------------------------------------------------------


def test_long_recordings_of_any_rate(inside):
    mixture = speech.voice(0, 0, 3.1) + speech.voice(1, 0, 3.1)
    separator = Separator(RUN, window_seconds=1.0, overlap_seconds=0.3, solver="first", steps=2, seed=1)
    whole = separator(mixture, RATE)
    assert whole.shape == (2, len(mixture)) and np.isfinite(whole).all()
    np.testing.assert_array_equal(whole, separator(mixture, RATE))
    # Each is as loud as it is in the mixture: what is left of the mixture has nothing of it.
    for source in whole.astype(np.float64):
        assert np.dot(mixture - source, source) == pytest.approx(0, abs=1e-3 * np.dot(source, source))
    assert separator(speech.voice(0, 0, 0.03, 16000), 16000).shape == (2, 480)
    # Four times louder, four times louder.
    np.testing.assert_allclose(separator(0.25 * mixture, RATE), 0.25 * whole, atol=1e-3 * np.abs(whole).max())
    write_pcm16(inside / "mixture.wav", mixture, RATE)
    flags = dict(resume_model=RUN, output_dir="separated", steps=2, solver="first", seed=1)
    speech.succeed(inside, "nn/separate.py", "mixture.wav", corpus_flags=False, **flags)
    assert soundfile.info("separated/mixture_s2.wav").frames == len(mixture)
    said = speech.refuse(inside, "nn/separate.py", "mixture.wav", "--level=peak", corpus_flags=False, **flags)
    assert "--level: DiffSep has no use for it" in said
    said = speech.refuse(inside, "nn/live.py", "--input=mixture.wav", resume_model=RUN, corpus_flags=False)
    assert "DiffSep takes whole windows" in said
