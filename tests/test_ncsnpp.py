"""DiffSep's networks: what the golden cases do not show."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from feat.base.files import UserError
from models.diffsep.cdiffuse import CDiffuse
from models.diffsep.ncsnpp import NONLINEARITIES, ScoreModel
from models.layers import conv
from nn.checkpoints import diffsep, readers
from nn.checkpoints import ours as checkpoint

SMALL = dict(fft_size=62, hop_size=16, channels=8, multipliers=(1, 2), blocks=1, attention=(16,))


def inputs(sources=2, samples=200, batch=2):
    generator = np.random.default_rng(0)
    state = generator.standard_normal((batch, sources, samples), np.float32)
    return state, np.linspace(0.2, 0.8, batch, dtype=np.float32), state.sum(axis=1)


def shuffled(model, seed=0):
    """Gives all weights values of the size of seeded ones, so that no output is 0."""
    generator = np.random.default_rng(seed)
    for variable in model.variables:
        scale = np.prod(variable.shape[:-1]) ** -0.5 if len(variable.shape) > 1 else 0.3
        variable.assign(np.asarray(variable) + scale * generator.standard_normal(variable.shape))
    return model


@pytest.fixture(scope="module")
def model():
    return shuffled(ScoreModel(**SMALL))


@pytest.mark.parametrize("kind", NONLINEARITIES)
def test_tiled_convolution_is_a_convolution(kind):
    """Values and gradients, for rows that fill no tile."""
    generator = np.random.default_rng(0)
    shapes = [(2, 6, 5, 3), (3, 3, 3, 4), (2, 1, 1, 3), (1, 1, 1, 3)]
    tensors = [tf.constant(generator.standard_normal(shape, np.float32)) for shape in shapes]
    weights = generator.standard_normal((2, 6, 5, 4), np.float32)
    found = []
    for convolution in (
        lambda x, kernel, *before: conv.tiled_convolution(x, kernel, *before, NONLINEARITIES[kind]),
        lambda x, kernel, *before: conv.convolve(conv.activated(x, *before, NONLINEARITIES[kind]), kernel, True),
    ):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            y = convolution(*tensors)
        found.append([y, *tape.gradient(y, tensors, output_gradients=weights)])
    for ours, theirs in zip(*found):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_lengths(model):
    """A tile of 64 frames takes as many samples as promised; every length gives as many samples back."""
    whole = ScoreModel(channels=4, multipliers=(1,), blocks=1, attention=())
    assert whole.tile_samples() == 7809
    assert [whole.padded_frames(samples) for samples in (1, 7809, 7810, 16001, 16002)] == [64, 64, 128, 128, 192]
    state, time, mixture = inputs(samples=33)
    assert model(state, time, mixture).shape == (2, 2, 33)


def test_settings_are_the_whole_model(model):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
    assert again.get_config() == model.get_config()
    again.set_weights(model.get_weights())
    np.testing.assert_array_equal(again(*inputs()), model(*inputs()))
    diffuse = CDiffuse(layers=3, channels=4, cycle=2)
    assert CDiffuse.from_config(diffuse.get_config()).get_config() == diffuse.get_config()


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision(model, precision):
    half = ScoreModel(**SMALL, dtype=precision)
    half.set_weights(model.get_weights())
    ours, exact = half(*inputs()), model(*inputs())
    assert ours.dtype == tf.float32
    allowed = 0.05 if precision == "mixed_bfloat16" else 0.01
    assert np.mean(np.square(ours - exact)) < allowed * np.mean(np.square(exact))


def test_learnable_spectra_undo_themselves():
    """Whatever the signs that training gave the transform."""
    model = ScoreModel(**SMALL, learnable=True)
    state, _, _ = inputs()
    for exponent, factor in ((0.5, 0.15), (-0.7, -0.3)):
        model.exponent.assign(exponent)
        model.factor.assign(factor)
        np.testing.assert_allclose(model.synthesise(model.analyse(tf.constant(state)), 200), state, atol=1e-4)


def test_time_of_cdiffuse():
    """Real times lie between the rows of the table, and at its steps are those."""
    embedding = CDiffuse(layers=1, channels=4).diffusion_embedding
    at_step, between = embedding(tf.constant([0.5, 0.51]))
    np.testing.assert_allclose(at_step, embedding(tf.constant([25]))[0], atol=1e-5)
    middle = embedding.table[25:27].mean(axis=0, keepdims=True)
    expected = ops.silu(embedding.projection2(ops.silu(embedding.projection1(middle))))
    np.testing.assert_allclose(between, expected[0], atol=1e-4)


# Checkpoints of the reference ------------------------------------------------------------------------


class Node:
    """Keeps its state as configuration objects of the reference's trainer do."""

    def __init__(self, **state):
        self.__dict__.update(state)


def as_node(value):
    if isinstance(value, dict):
        return Node(_metadata=None, _content={key: as_node(item) for key, item in value.items()})
    if isinstance(value, list):
        return Node(_metadata=None, _content=[as_node(item) for item in value])
    return Node(_metadata=None, _val=value)


def trainer_file(path, model, sources=2, averages=True):
    """A file as the reference's trainer writes it; its averages are the weights of `model`, its weights are 0."""
    torch = pytest.importorskip("torch")
    state = {}
    for name, variable in checkpoint.weight_names(model.variables).items():
        array, theirs = np.asarray(variable), diffsep.ncsnpp_name(name)
        if array.ndim > 1 and ("Conv" in theirs or array.ndim == 4 or "output_layer" in theirs):
            array = array.reshape((1, 1, *array.shape)[-4:]).transpose(3, 2, 0, 1)
        elif ".NIN_" not in theirs:
            array = array.T
        state[theirs] = torch.tensor(array.copy())
    config = {
        "model": {
            "fs": 8000,
            "score_model": {
                "num_sources": sources,
                "stft_args": {"n_fft": 62, "hop_length": 16},
                "backbone_args": {"nf": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [16]},
                "spec_factor": 0.15,
            },
            "sde": {"sigma_max": 0.5},
        }
    }
    stored = {
        "state_dict": {name: 0 * value for name, value in state.items()} | {"score_model.stft.window": torch.zeros(62)},
        "ema": {"decay": 0.999, "shadow_params": list(state.values())[: None if averages else 5]},
        "hyper_parameters": {"config": as_node(config)},
    }
    torch.save(stored, path)
    return str(path)


def test_trainer_file(model, tmp_path):
    path = trainer_file(tmp_path / "checkpoint.pt", model)
    reader = readers.open_reader(path)
    assert reader.system == "ncsnpp" and reader.config["model"]["sde"] == {"sigma_max": 0.5}
    restored = ScoreModel(**reader.settings())
    readers.load_for_inference(path, "ncsnpp", restored)
    np.testing.assert_array_equal(restored(*inputs()), model(*inputs()))
    with pytest.raises(UserError, match="separates 2 sources, the model of these flags 3"):
        readers.load_for_inference(path, "ncsnpp", ScoreModel(3, **SMALL))


def test_averages_of_another_network(model, tmp_path):
    with pytest.raises(UserError, match="5 averaged weights"):
        readers.open_reader(trainer_file(tmp_path / "checkpoint.pt", model, averages=False))


def test_refused_settings():
    for wrong in ({"embedding_type": "positional"}, {"progressive": "residual"}, {"resblock_type": "ddpm"}):
        with pytest.raises(UserError, match="the reference itself"):
            diffsep.backbone_settings(wrong)
    with pytest.raises(ValueError, match="cannot be halved"):
        ScoreModel(fft_size=510, multipliers=(1,) * 10, channels=4)
