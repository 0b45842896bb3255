"""Binaural TasNet on recordings of any length: every talker as both ears hear it."""

import sys

import numpy as np
import tensorflow as tf

from feat.base.files import UserError
from feat.base.graph import compiled
from models.binaural_tasnet.network import EARS, MimoTasnet
from models.binaural_tasnet.streaming import StreamingBinaural
from nn.checkpoints import binaural_tasnet, readers
from nn.checkpoints import ours as checkpoint
from nn.recordings.streams import compile_step, stream_through
from nn.recordings.windows import join, piece

REFERENCE_RATE = 8000  # Hz, of SpeechBrain's checkpoints, which do not tell


def reference_settings(source):
    """Constructor arguments of a checkpoint of SpeechBrain; says on stderr what it does not tell itself."""
    settings, reader = readers.foreign_settings(source, "mimo_tasnet")
    if settings["wiring"] != "parallel":
        return settings
    wiring = binaural_tasnet.named_wiring(source)
    said = {
        "cross": "taken as cross, as its experiment is named; the projection of its features, which it does not hold,"
        " is drawn from a fixed seed",
        None: "taken as parallel, of which cross has the same weights, and no folder's name tells them apart; if it is"
        " cross, put it into a folder named convtasnet-cross",
    }
    if wiring in said:
        print(f"{reader.prefix}: {said[wiring]}", file=sys.stderr, flush=True)
    return settings | {"wiring": wiring or "parallel"}


class Binaural:
    """Binaural TasNet as a system of nn.systems.trained.

    Args:
        checkpoints: {"mimo_tasnet": prefix, or folder of SpeechBrain's}.
    """

    NAME = "Binaural TasNet"
    ENROLMENT = False
    FACES = False
    CHANNELS = len(EARS)
    LATENCY = "window"

    def __init__(self, checkpoints):
        self.source = checkpoints["mimo_tasnet"]
        config = checkpoint.read_config(self.source)
        if config is None:
            config = {"model": reference_settings(self.source), "sample_rate": REFERENCE_RATE}
        self.model = MimoTasnet(**config["model"])
        readers.load_for_inference(self.source, "mimo_tasnet", self.model)
        self.sample_rate = config["sample_rate"]
        self.hop_size = self.model.hop
        self.talkers = self.model.talkers
        self.causal = self.model.causal and self.model.settings["norm"] != "global"
        spec = tf.TensorSpec([1, None, len(EARS)], tf.float32)
        self._separate = compiled(lambda mixture: self.model(mixture), spec)

    def frames(self, samples):
        """Of a recording with silence behind it, so that all of it lies in whole windows."""
        return -(-samples // self.hop_size) + 1

    def spool_bytes(self, samples):
        """Nothing is kept of windows."""
        return 0

    def separate(self, samples, windows, spool, bar=None, enrolment=None):
        """Talkers in the order of those of the window before, to which they are alike at both ears."""
        hop, total = self.hop_size, samples.shape[-1]
        frames = self.frames(total)
        length = (min(frames, windows.length) + 1) * hop

        def separated():
            for start in windows.starts(frames):
                mixture = piece(samples, start * hop, max(length, self.model.shortest))
                talkers = self._separate(mixture.T[None])[0].numpy()[:, :length]
                yield start * hop, np.moveaxis(talkers, -1, 1)
                if bar is not None:
                    bar.update(2)

        done = 0
        for talkers in join(separated(), match=True):
            yield talkers[..., : max(total - done, 0)]
            done += talkers.shape[-1]

    def stream(self, enrolment=None):
        """A models.binaural_tasnet.streaming.StreamingBinaural. Raises UserError unless the network is causal."""
        if not self.causal:
            raise UserError(
                f"{self.source}: not causal, it looks at what is still to come; train with --causal, or separate whole"
                " recordings with nn/separate.py"
            )
        try:
            return StreamingBinaural(self.model, compile_step)
        except ValueError as error:
            raise UserError(f"{self.source}: {error}") from error

    def live(self, stream, blocks):
        """Yields the talkers, [talkers, 2, some samples], of blocks [2, samples] as they come."""
        return (talkers for talkers, _ in stream_through(stream, blocks))
