"""nn/diffsep.py as people run it, on pseudo speech and tiny networks."""

import json
import shutil

import numpy as np
import pytest
import speech
import tensorflow as tf

from models.diffsep.losses import ScoreMatching
from models.diffsep.ncsnpp import ScoreModel
from models.diffsep.sampling import score_of
from models.diffsep.sde import MixSDE
from nn.training.optimizers import make_optimizer
from nn.training.step import TrainStep

SIZES = dict(backbone="cdiffuse", residual_layers=1, residual_channels=4)
TINY = SIZES | dict(
    wsj0_mix="data", mode="min", batch_size=1, accumulate=2, segment_seconds=0.4, val_steps=1, val_solver="first",
    pictures=0, learning_rate=0.01, init_hack=5, init_hack_p=0.5, clip_percentile=50, exp_name="tiny",
)  # fmt: skip
EXP = "exp/tiny/models"


def train(folder, stamp, succeeds=True, **named):
    runner = speech.succeed if succeeds else speech.refuse
    return runner(folder, "nn/diffsep.py", corpus_flags=False, time_stamp=stamp, **TINY | named)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Mixtures, and a run of two epochs."""
    folder = tmp_path_factory.mktemp("diffsep")
    speech.make_corpus(folder, dict(tr=4, cv=2), seconds=(0.4, 0.6))
    train(folder, "whole", epoch=2, check_val_every_n_epoch=2, steps=7, schedule="snr")
    return folder


def test_a_run_that_goes_on_comes_to_the_same_weights(folder):
    whole = folder / EXP / "whole"
    config = json.loads((whole / "config.json").read_text())
    assert config["system"] == "cdiffuse" and config["sampling"] == {"steps": 7, "schedule": "snr"}
    assert config["sde"] == "MixSDE" and config["sample_rate"] == 8000 and config["model"]["channels"] == 4
    shutil.copytree(whole, folder / EXP / "again")
    last = "tiny_model.ckpt_step_5"
    for path in (folder / EXP / "again").glob(last + "*"):
        path.unlink()
    said = train(folder, "again", epoch=2, check_val_every_n_epoch=2)
    # Validation before the first epoch was in the first run; that before the second is left out.
    assert "going on at step 3 of 4" in said and said.count("validation loss") == 1
    speech.assert_same_checkpoints(whole / last, folder / EXP / "again" / last)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (dict(preset="icassp-separation", wsj0_mix="nowhere"), "nowhere/2speakers/wav8k/min/tr/mix: no such file"),
        (dict(preset="noise-reduction", vctk_demand="nowhere"), "nowhere/train/noisy: no such file"),
        (dict(preset="cdiffuse", n_speakers=3), "3speakers/wav8k/min/tr/mix: no such file"),
        (dict(preset="small-enhancement", n_speakers=3), "speech and noise are 2"),
        (
            dict(load=EXP + "/whole/best", residual_channels=8),
            "trained with --residual_channels 4, but --residual_channels 8 was given",
        ),
        (dict(load=EXP + "/whole/best", backbone="ncsnpp"), "trained with --backbone cdiffuse, not ncsnpp"),
        (dict(load=EXP + "/whole/best", predicts="sources"), "trained with --predicts score, not sources"),
        (dict(main_val_loss="pesq"), "--main_val_loss pesq: is not among --val_losses si_sdr"),
        (dict(train_source_order="pit", init_hack=4), "source order pit: does not go with init_hack 4"),
        (dict(backbone="ncsnpp", attn_resolutions="x"), "--attn_resolutions x: should be integers"),
        (dict(is_deploy=1), "this script trains; separate with nn/separate.py"),
    ],
)
def test_training_refuses(folder, flags, said):
    assert said in train(folder, "refused", succeeds=False, **flags)


def test_gradients_are_limited_after_every_piece():
    weight = tf.keras.Sequential([tf.keras.Input((1,)), tf.keras.layers.Dense(1, use_bias=False)])

    def moved(**options):
        weight.layers[0].kernel.assign([[0.0]])
        optimizer = make_optimizer("momentum", 1.0)
        optimizer.build(weight.trainable_variables)
        step = TrainStep(
            weight, optimizer, lambda batch, training: (weight(batch)[:, 0], {}), tf.distribute.get_strategy(), 2,
            accumulate=2, **options,
        )  # fmt: skip
        step.compile(tf.TensorSpec([1, 1]))
        step([tf.constant([[8.0]]), tf.constant([[-4.0]])], 1.0)
        return float(weight.layers[0].kernel[0, 0])

    assert moved() == pytest.approx(-2.0)
    assert moved(clip_norm=1.0) == pytest.approx(-1.0)
    assert moved(clip_norm=1.0, clip_pieces=True) == pytest.approx(1.0)  # 4 becomes 1, and 1 - 2 is left


def test_a_network_learns_to_predict_sources():
    model = ScoreModel(
        fft_size=62, hop_size=32, channels=8, multipliers=(1,), blocks=1, attention=(), frame_multiple=None
    )
    sde = MixSDE()
    matching = ScoreMatching(sde, source_order="none", weight="error")
    drawn = np.random.default_rng(0).standard_normal((4, 2, 320)).astype("float32") * [[[0.3], [1.0]]]
    sources = tf.constant(drawn, tf.float32)
    mixture = tf.reduce_sum(sources, axis=1)
    optimizer = make_optimizer("adam", 3e-3)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(number):
        draws = matching.draw(tf.range(4), number, 320)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(matching(score_of(model, sde, mixture, "sources", True), mixture, sources, draws))
        optimizer.update(tape.gradient(loss, [v.value for v in model.trainable_variables]), 3e-3)
        optimizer.iterations.assign_add(1)
        return loss

    found = [float(step(tf.constant(i))) for i in range(60)]
    # The best linear guess that does not know which source is the louder has a loss of half.
    assert np.mean(found[-10:]) < 0.7 * np.mean(found[:5])
