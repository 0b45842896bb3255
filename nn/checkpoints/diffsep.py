"""Checkpoints of fakufaku/diffusion-separation: names of weights, their averages, the configuration inside.

A file of its trainer holds `state_dict`; `ema`, whose `shadow_params` are the moving averages of all parameters, in
their order and without names; and `hyper_parameters`, with the configuration of the run. The averages are what it
separates with, so they are taken. Files that hold names and arrays alone are read too, as the published network.
"""

import re

import numpy as np

from feat.base.files import UserError
from nn.checkpoints.torch_file import ArrayReader, arrays_of

NETWORK = "score_model.backbone."
MARKS = {"ncsnpp": "all_modules.0.W", "cdiffuse": "diffusion_embedding.projection1.weight"}
BUFFERS = ("stft.window", "stft_inv.window")
SAMPLE_RATE = 8000  # of the published network


def system_of(names):
    """Gives "ncsnpp" or "cdiffuse", None for something else."""
    for system, mark in MARKS.items():
        if any(name == mark or name.endswith("." + mark) for name in names):
            return system
    return None


def averaged(path, stored):
    """{name: tensor} of a trainer's file: the averages, if there are any.

    Raises:
        UserError: there are not as many as parameters, or of other shapes.
    """
    weights = {name: value for name, value in stored["state_dict"].items() if hasattr(value, "shape")}
    averages = (stored.get("ema") or {}).get("shadow_params")
    if not averages:
        return weights
    for names in (
        [name for name in weights if not name.endswith(BUFFERS)],
        # Versions that keep no averages of what is not trained.
        [name for name in weights if not name.endswith((*BUFFERS, MARKS["ncsnpp"]))],
    ):
        if [tuple(weights[name].shape) for name in names] == [tuple(value.shape) for value in averages]:
            return weights | dict(zip(names, averages))
    raise UserError(
        f"{path}: {len(averages)} averaged weights (ema.shadow_params) that are not those of its {len(weights)}"
        " weights; give a checkpoint as the reference's trainer wrote it"
    )


def plain(value):
    """Configuration objects, of which torch_checkpoint keeps the state, as dictionaries, lists and plain values."""
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    state = getattr(value, "state", None)
    if not isinstance(state, dict):
        return None if hasattr(value, "state") else value
    for key in ("_content", "_val"):
        if key in state:
            return plain(state[key])
    return None


def configuration(stored):
    """The configuration of a trainer's file, {} if it holds none."""
    parameters = plain(stored.get("hyper_parameters") or {})
    found = (parameters or {}).get("config", parameters)
    return found if isinstance(found, dict) else {}


# Names ----------------------------------------------------------------------------------------------

_LAYERS = {"norm": "GroupNorm", "conv": "Conv", "dense": "Dense", "nin": "NIN", "conv2d": "Conv2d"}
_WEIGHTS = {"gamma": "weight", "beta": "bias", "kernel": "weight", "bias": "bias", "frequencies": "W"}


def ncsnpp_name(name):
    """Name here of a weight of models.diffsep.ncsnpp.ScoreModel, given without the model's own."""
    if name in ("exponent", "factor"):
        return "score_model.spec_" + {"exponent": "abs_exponent"}.get(name, name)
    _, layer, *inside, weight = name.split("/")
    weight = _WEIGHTS[weight]
    if inside:
        kind, number = inside[0].rsplit("_", 1)
        if kind == "nin":
            weight = {"weight": "W", "bias": "b"}[weight]
        weight = f"{_LAYERS[kind]}_{number}.{weight}"
    return NETWORK + re.sub(r"^module_", "all_modules.", layer) + "." + weight


def cdiffuse_name(name):
    """As `ncsnpp_name`, of models.diffsep.cdiffuse.CDiffuse."""
    *scope, weight = name.split("/")
    scope = [re.sub(r"^block_(\d+)$", r"residual_layers.\1", part) for part in scope]
    return ".".join([*scope, _WEIGHTS[weight]])


def in_our_layout(name, array):
    """Kernels channels-last: (row, column, in, out), (tap, in, out) or (in, out)."""
    if re.search(r"\.NIN_\d+\.W$", name):
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


# Settings -------------------------------------------------------------------------------------------

# Constructor arguments of models.diffsep.ncsnpp.ScoreModel: where the configuration has them.
_WRAPPER = dict(
    transform="transform", exponent="spec_abs_exponent", factor="spec_factor", learnable="spec_trans_learnable"
)
_BACKBONE = dict(
    channels="nf",
    multipliers="ch_mult",
    blocks="num_res_blocks",
    attention="attn_resolutions",
    block="resblock_type",
    progressive="progressive",
    progressive_input="progressive_input",
    combine="progressive_combine",
    rescale="skip_rescale",
    nonlinearity="nonlinearity",
    conditional="conditional",
    centred="centered",
    divide_by_time="scale_by_sigma",
    fourier_scale="fourier_scale",
    dropout="dropout",
    init_scale="init_scale",
)


def ncsnpp_settings(score_model, path="the configuration"):
    """Constructor arguments of models.diffsep.ncsnpp.ScoreModel of the reference's `score_model` section.

    Raises:
        UserError: for what the network here refuses.
    """
    found = {ours: score_model[theirs] for ours, theirs in _WRAPPER.items() if theirs in score_model}
    stft = score_model.get("stft_args", {})
    found |= {
        ours: source[theirs]
        for ours, source, theirs in (
            ("sources", score_model, "num_sources"),
            ("fft_size", stft, "n_fft"),
            ("hop_size", stft, "hop_length"),
        )
        if theirs in source
    }
    return found | backbone_settings(score_model.get("backbone_args", {}), path)


def backbone_settings(backbone, path="the configuration"):
    """Those of NCSNpp of the reference's `backbone_args` section."""
    found = {ours: backbone[theirs] for ours, theirs in _BACKBONE.items() if theirs in backbone}
    found["nonlinearity"] = found.get("nonlinearity", "swish").lower()
    found["combine"] = found.get("combine", "sum").lower()
    found["block"] = found.get("block", "biggan").lower()
    for name in ("progressive", "progressive_input"):
        if name in found:
            found[name] = str(found[name]).lower()
    if not backbone.get("fir", True):
        found["fir"] = None
    elif "fir_kernel" in backbone:
        found["fir"] = list(backbone["fir_kernel"])
    for name, value, why in (
        ("embedding_type", "fourier", "the reference itself cannot run another"),
        ("progressive", ("none", "output_skip"), "the reference itself cannot run it"),
    ):
        if str(backbone.get(name, "fourier" if name == "embedding_type" else "none")).lower() not in value:
            raise UserError(f"{path}: {name} is {backbone[name]!r}, which is not to be had; {why}")
    if found["block"] == "ddpm" and backbone.get("resamp_with_conv", True):
        raise UserError(f"{path}: resblock_type ddpm needs resamp_with_conv=False; the reference itself cannot run it")
    return found


def settings_of(reader):
    """Constructor arguments of the network: those of the configuration inside, or the published ones and the sizes."""
    shapes = reader.shapes
    if reader.system == "cdiffuse":
        return cdiffuse_settings(shapes)
    section = (reader.config.get("model") or {}).get("score_model") or {}
    found = ncsnpp_settings(section, reader.prefix)
    found["channels"] = shapes[NETWORK + "all_modules.0.W"][0]
    found["sources"] = shapes[NETWORK + "output_layer.weight"][0] // 2
    found["learnable"] = "score_model.spec_factor" in shapes
    return found


def cdiffuse_settings(shapes):
    """Constructor arguments of CDiffuse (models/diffsep) that the shapes tell: all but the cycle of dilations."""
    layers = [int(match.group(1)) for match in map(re.compile(r"residual_layers\.(\d+)\.").match, shapes) if match]
    return dict(
        sources=shapes["output_projection.weight"][0],
        channels=shapes["input_projection.weight"][0],
        layers=max(layers) + 1,
    )


def check_sources(reader, model):
    """Raises UserError if a checkpoint is of another number of sources than a model."""
    own = reader.settings()["sources"]
    if own != model.sources:
        raise UserError(
            f"{reader.prefix}: separates {own} sources, the model of these flags {model.sources};"
            f" give --n_speakers {own}, or train another"
        )


def as_arrays(weights):
    """{name: array} without buffers; names of a CDiffuse in a wrapper lose the wrapper's."""
    arrays = {name: np.asarray(value) for name, value in weights.items() if not name.endswith(BUFFERS)}
    if system_of(arrays) == "cdiffuse":
        arrays = {name.removeprefix("score_model.").removeprefix("backbone."): x for name, x in arrays.items()}
    return arrays


class DiffsepReader(ArrayReader):
    """A file of DiffSep, with the configuration of its training.

    Args:
        config: see `configuration`; {} if it is not known.
    """

    SOURCE = "DiffSep by fakufaku/diffusion-separation"
    variant = "diffsep"

    def __init__(self, prefix, arrays, config=None):
        super().__init__(prefix, as_arrays(arrays))
        self.config = config or {}

    @classmethod
    def holds(cls, names):
        return system_of(names) is not None

    @classmethod
    def of_file(cls, path, stored):
        held = stored.get("state_dict")
        if isinstance(held, dict) and system_of(held):
            return cls(path, arrays_of(averaged(path, stored)), configuration(stored))
        return cls(path, arrays_of(stored))

    @property
    def system(self):
        return system_of(self.shapes)

    def __call__(self, name):
        return in_our_layout(name, self.arrays[name])

    def reference_names(self, model):
        """{weight of ours: name here}. Raises UserError for another number of sources."""
        check_sources(self, model)
        theirs = {"ncsnpp": ncsnpp_name, "cdiffuse": cdiffuse_name}[self.system]
        names = (variable.path.split("/", 1)[1] for variable in model.variables)
        return {name: theirs(name) for name in names if not name.endswith("seed_generator_state")}

    def settings(self):
        """Constructor arguments of the network; those that neither configuration nor arrays tell are left out."""
        return settings_of(self)


READERS = (DiffsepReader,)
