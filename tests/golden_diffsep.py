"""Procedures of the golden cases of DiffSep's networks: resampling, blocks, spectra, scores."""

import keras
import numpy as np
import tensorflow as tf
from golden_case import seeded_weight, summary
from keras import ops

from models.diffsep.cdiffuse import CDiffuse
from models.diffsep.ncsnpp import Attention, Combine, FourierEmbedding, NCSNpp, ResidualBlock, ScoreModel, StridedConv
from models.layers import fir
from nn.checkpoints import ours as checkpoint
from nn.checkpoints.diffsep import NETWORK, DiffsepReader, backbone_settings, in_our_layout, ncsnpp_settings


def to_maps(images):
    """The reference's [batch, channels, rows, columns] -> ours."""
    return tf.constant(np.transpose(images, (0, 2, 3, 1)))


def to_images(maps):
    return np.transpose(maps, (0, 3, 1, 2))


def assign(layer, weights, prefix):
    """Gives a layer the weights whose names start so, and are those of ours in the reference's words."""
    names = {"gamma": "weight", "beta": "bias", "kernel": "weight", "bias": "bias", "frequencies": "W"}
    scopes = {"norm": "GroupNorm", "conv": "Conv", "dense": "Dense", "nin": "NIN", "conv2d": "Conv2d"}
    used = set()
    for variable in layer.weights:
        *inside, weight = variable.path.split("/")[1:] if "/" in variable.path else [variable.path]
        name = names[weight]
        if inside:
            kind, number = inside[-1].rsplit("_", 1)
            name = {"weight": "W", "bias": "b"}[name] if kind == "nin" else name
            name = f"{scopes[kind]}_{number}.{name}"
        used.add(prefix + name)
        array = in_our_layout(prefix + name, weights[prefix + name])
        variable.assign(np.reshape(array, variable.shape))
    assert used == {name for name in weights if name.startswith(prefix)}
    return layer


# Parts ----------------------------------------------------------------------------------------------


def fir_resample(case, folder):
    kernels = case.config["kernels"]
    for name, array in case.named("in").items():
        if not name.startswith("x"):
            continue
        x = to_maps(array)

        def check(theirs, maps, name=name):
            case.check(theirs, to_images(maps), case["out/" + theirs.format(name)], 1e-6)

        check("naive_up_{}", fir.upsample(x))
        if f"out/naive_down_{name}" in case:
            check("naive_down_{}", fir.downsample(x))
        for i, kernel in enumerate(kernels):
            check("up_{}_k%d" % i, fir.upsample(x, kernel))
            check("down_{}_k%d" % i, fir.downsample(x, kernel))
            for factor in (3, 4):
                for kind, resample in (("up", fir.upsample), ("down", fir.downsample)):
                    if f"out/{kind}{factor}_{name}_k{i}" in case:
                        check("%s%d_{}_k%d" % (kind, factor, i), resample(x, kernel, factor))
        if f"out/conv_down_{name}_k0" in case:
            weight = case["in/w" + name[1:]]
            layer = StridedConv(weight.shape[0], kernels[0])
            layer.build(x.shape)
            layer.conv.kernel.assign(weight.transpose(2, 3, 1, 0))
            check("conv_down_{}_k0", layer(x))
    x = to_maps(case["in/x0"])
    for key, theirs in case.named("out").items():
        if key.startswith("upfirdn_"):
            up, down, before, after = (int(part.lstrip("udp")) for part in key.split("_")[1:])
            ours = fir.up_fir_down(x, case["in/ker"], up, down, (before, after))
            case.check(key, to_images(ours), theirs, 1e-6)


def block_of(name, kind, case):
    """(layer of a block, its shape of input) of a case of single blocks; the settings are in its name."""
    shared = dict(rescale=not any(word in name for word in ("norescale", "plain", "conv")))
    output = case["out/" + name]
    if kind == "GaussianFourierProjection":
        return FourierEmbedding(output.shape[-1] // 2)
    if kind == "Combine":
        return Combine(case[f"in/{name}.h"].shape[1], "cat" if name.endswith("cat") else "sum")
    if kind == "AttnBlockpp":
        return Attention(**shared)
    if kind.startswith("Resnet"):
        return ResidualBlock(
            output.shape[1],
            kind="ddpm" if "DDPM" in kind else "biggan",
            resample="up" if "_up_" in name else "down" if "_down_" in name else None,
            fir=None if "naive" in name else (1, 3, 3, 1),
            wide_shortcut=name.endswith("conv"),
            **shared,
        )
    if name.endswith("conv"):
        return StridedConv(output.shape[1], None if "naive" in name else (1, 3, 3, 1))
    return None


def ncsnpp_blocks(case, folder):
    weights = case.weights()
    inputs = case.named("in")
    for name, kind in case.config["blocks"].items():
        own = {key.split(".")[1]: value for key, value in inputs.items() if key.split(".")[0] == name}
        maps = {key: to_maps(value) if value.ndim == 4 else tf.constant(value) for key, value in own.items()}
        layer = block_of(name, kind, case)
        if layer is None:
            kernel = None if "naive" in name else (1, 3, 3, 1)
            ours = (fir.upsample if kind == "Upsample" else fir.downsample)(maps["x"], kernel)
        else:
            sizes = {"time_size": own["temb"].shape[1]} if "temb" in own else {}
            layer.build(next(iter(maps.values())).shape, **sizes)
            assign(layer, weights, name + ".")
            if "temb" in own:
                ours = layer(maps["x"], layer.time_bias(ops.silu(maps["temb"])))
            else:
                ours = layer(*maps.values())
        case.check(name, to_images(ours) if ours.ndim == 4 else ours, case["out/" + name])


class Renamed(keras.Model):
    """A network alone, under the names that it has in a score model."""

    def __init__(self, network):
        super().__init__(name="ncsnpp")
        self.network = network
        self.sources = network.settings["outputs"] // 2
        self.build()

    def build(self, input_shape=None):
        self.network.build()


def ncsnpp_variants(case, folder):
    x, time = to_maps(case["in/x"]), tf.constant(case["in/t"])
    weights = case.weights()
    for name, changes in case.config["variants"].items():
        config = case.config["base"] | changes
        network = NCSNpp(
            config["num_channels_in"],
            config["num_channels_out"],
            config["image_size"],
            **backbone_settings(config),
            name="network",
        )
        own = {NETWORK + key.split(".", 1)[1]: value for key, value in weights.items() if key.split(".")[0] == name}
        model = Renamed(network)
        checkpoint.restore_weights(DiffsepReader(name, own), "ncsnpp", model)
        ours = network(x, time)
        theirs = case["out/" + name]
        case.check(name, to_images(ours)[..., :: ours.shape[2] // theirs.shape[3]], theirs)


# Spectra and scores ---------------------------------------------------------------------------------


def frontend(case, folder):
    def model(**changes):
        settings = ncsnpp_settings(case.config | changes) | dict(channels=4, multipliers=(1,), blocks=1, attention=())
        return ScoreModel(**settings)

    def seen(model, waves):
        spectra = model.analyse(tf.constant(waves))
        return spectra, np.asarray(model.to_maps(spectra))

    plain = model()
    for key, waves in case.named("in").items():
        samples = waves.shape[-1]
        spectra, maps = seen(plain, waves)
        frames = spectra.shape[3]
        assert frames == plain.frames(samples) and maps.shape[2] == plain.padded_frames(samples)
        assert maps.shape[2] - frames == case[f"out/n_pad_{samples}"]
        case.check(key, summary(to_images(maps))[8:], case[f"probe/pre_process_{samples}"][8:], 1e-5)
        if f"out/pre_process_{samples}" in case:
            theirs = case[f"out/pre_process_{samples}"]
            case.check(key, to_images(maps)[..., : theirs.shape[3]], theirs, 1e-5)
        back = plain.synthesise(plain.to_spectra(tf.constant(maps), frames), samples)
        case.check(key, back, case[f"out/round_trip_{samples}"], 1e-5)
    for key in case.named("probe"):
        transform, *numbers = key.removeprefix("pre_").split("_")
        if transform not in ("exponent", "log", "none"):
            continue
        exponent, factor = map(float, numbers)
        other = model(transform=transform, spec_abs_exponent=exponent, spec_factor=factor)
        theirs = case[f"out/round_trip_{transform}_{'_'.join(numbers)}"]
        spectra, maps = seen(other, case[f"in/wave{theirs.shape[-1]}"])
        case.check(key, summary(to_images(maps))[8:], case["probe/" + key][8:], 1e-5)
        case.check(key, other.synthesise(spectra, theirs.shape[-1]), theirs, 1e-5)
    for row in case.config["seeded_inputs"]:
        maps = to_maps(seeded_weight(**row))
        for key, theirs in case.named("out").items():
            if key.startswith("post_process_random_"):
                samples = theirs.shape[-1]
                # The last frames were dropped that samples have no need of.
                frames = min(plain.frames(samples), maps.shape[2])
                case.check(key, plain.synthesise(plain.to_spectra(maps, frames), samples), theirs, 1e-5)


def make_score_model(case):
    """The ScoreModel of a case, its weights sent through the converter."""
    reader = DiffsepReader(case.meta["case"], case.weights(), {"model": {"score_model": case.config}})
    model = ScoreModel(**reader.settings())
    checkpoint.restore_weights(reader, "ncsnpp", model)
    return model


def score_model(case, folder):
    model = make_score_model(case)
    state, time, mixture = (tf.constant(case["in/" + name]) for name in ("xt", "t", "mix"))
    try:
        ours = np.asarray(model(state, time, mixture[:, 0]))
        theirs = case["out/score"]
        case.check("score", ours[..., :: -(-ours.shape[-1] // theirs.shape[-1])], theirs)
        again = model(state, time, prepared=model.prepare(mixture[:, 0]), biases=model.time_biases(time))
        case.check("score from what was prepared", again, ours, 1e-6)
    except AssertionError as error:
        error.add_note(first_probe_that_differs(case, model, lambda: model(state, time, mixture[:, 0])))
        raise


def first_probe_that_differs(case, model, run):
    """Name of the first module of the network whose output is off."""
    found = []

    def watch(layer, name):
        original = layer.call

        def call(*arguments, **options):
            result = original(*arguments, **options)
            found.append((name, np.asarray(result)))
            return result

        layer.call = call
        return original

    watched = [(layer, i) for i, layer in enumerate(model.network.modules) if layer is not None]
    originals = [(layer, watch(layer, f"backbone.all_modules.{i}")) for layer, i in watched]
    run()
    for layer, original in originals:
        layer.call = original
    compared = 0
    for name, value in found:
        if "probe/" + name in case:
            compared += 1
            ours = summary(to_images(value) if value.ndim == 4 else value)
            theirs = case["probe/" + name]
            if np.max(np.abs(ours[:10] - theirs[:10])) > 2e-4 * max(theirs[9], 1e-6):
                return f"first probe that differs: {name} (ours {ours}, reference {theirs})"
    return f"none of {compared} probes differs"


def cdiffuse(case, folder):
    config = case.config
    reader = DiffsepReader(case.meta["case"], case.weights())
    settings = reader.settings() | dict(cycle=config["dilation_cycle_length"], steps=config["embedding_len"])
    assert settings["layers"] == config["residual_layers"] and settings["channels"] == config["residual_channels"]
    model = CDiffuse(**settings, parity=True)
    checkpoint.restore_weights(reader, "cdiffuse", model)
    embedding = model.diffusion_embedding
    # Arguments of up to 500 000 radians: what is left of the last columns is how float32 was rounded.
    case.check("table", embedding.table, case["out/embedding_table"], 0.05)
    embedding.table = case["out/embedding_table"]
    state, mixture = tf.constant(case["in/x"]), tf.constant(case["in/y"][:, 0])
    for key, time in case.named("in").items():
        if key.startswith("t_"):
            name = key.removeprefix("t_")
            case.check(name, embedding(tf.constant(time)), case[f"out/{name}_embedding"])
            case.check(name, model(state, tf.constant(time), mixture), case[f"out/{name}"])


PROCEDURES = {
    ("diffsep", kind): function
    for kind, function in dict(
        fir_resample=fir_resample,
        ncsnpp_blocks=ncsnpp_blocks,
        ncsnpp_variants=ncsnpp_variants,
        frontend=frontend,
        score_model=score_model,
        cdiffuse=cdiffuse,
    ).items()
}
