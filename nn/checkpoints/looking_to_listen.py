"""Checkpoints of Looking to Listen by vitrioil/Speech-Separation and asteroid: names of weights, and sizes."""

from models.looking_to_listen.network import AUDIO_LAYERS, PARITY, VIDEO_LAYERS
from nn.checkpoints.torch_file import _CONV, _TORCH_BATCH_NORM, ArrayReader, _names


def catalyst_names(model):
    """As `seed_names`, for Looking to Listen."""
    table = []
    for stream, layers in (("audio", AUDIO_LAYERS), ("video", VIDEO_LAYERS)):
        for i in range(1, len(layers) + 1):
            table += [
                (f"{stream}_{i}", f"{stream}_output.conv{i}", _CONV),
                (f"{stream}_{i}/norm", f"{stream}_output.batch_norm{i}", _TORCH_BATCH_NORM),
            ]
    for i in range(1, 4):
        table += [(f"dense_{i}", f"fc{i}", _CONV), (f"norm_{i}", f"batch_norm{i}", _TORCH_BATCH_NORM)]
    names = _names([*table, ("mask", "complex_mask_layer", _CONV)])
    for direction, end in (("forward", ""), ("backward", "_reverse")):
        for ours, theirs in (("kernel", "weight_ih"), ("recurrent_kernel", "weight_hh"), ("bias", "bias")):
            names[f"lstm/{direction}_{ours}"] = f"lstm.{theirs}_l0{end}"
    return names


def catalyst_settings(shapes):
    """Constructor arguments of LookingToListen that follow from shapes, and what the seed has besides them."""
    units_of_masks, units = shapes["complex_mask_layer.weight"]
    last, video = shapes["audio_output.conv15.weight"][0], shapes["video_output.conv6.weight"][0]
    inputs = shapes["lstm.weight_ih_l0"][1]  # last * bins + faces * video, where faces * bins = units_of_masks / 2
    fitting = [
        faces
        for faces in range(1, inputs // video + 1)
        if units_of_masks % (2 * faces) == 0 and last * units_of_masks // (2 * faces) + faces * video == inputs
    ]
    faces = fitting[0] if fitting else 1
    return PARITY | dict(
        faces=faces,
        embedding_dim=shapes["video_output.conv1.weight"][1],
        channels=shapes["audio_output.conv1.weight"][0],
        last_channels=last,
        video_channels=video,
        lstm_units=shapes["lstm.weight_hh_l0"][1],
        units=units,
        bins=units_of_masks // (2 * faces),
        frames=shapes["batch_norm1.weight"][0],
    )


class CatalystReader(ArrayReader):
    """A file of vitrioil/Speech-Separation or of the recipe of asteroid, which train with catalyst."""

    SOURCE = "Looking to Listen by vitrioil/Speech-Separation or asteroid"
    MARK = "audio_output.conv1.weight"
    variant = "catalyst"
    system = "looking_to_listen"

    def __init__(self, prefix, arrays):
        super().__init__(prefix, arrays)
        # PyTorch's LSTM has two biases, which are only ever added.
        for name in ("lstm.bias_ih_l0", "lstm.bias_ih_l0_reverse"):
            other = name.replace("_ih_", "_hh_")
            if name in self.arrays and other in self.arrays:
                self.arrays[name.replace("_ih_", "_")] = self.arrays.pop(name) + self.arrays.pop(other)
        self.shapes = {name: array.shape for name, array in self.arrays.items()}

    def reference_names(self, model):
        return catalyst_names(model)

    def sizes(self):
        return catalyst_settings(self.shapes)


READERS = (CatalystReader,)
