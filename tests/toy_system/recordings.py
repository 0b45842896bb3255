"""The system on recordings of any length."""

import numpy as np

from nn.checkpoints import ours, readers
from nn.recordings.windows import join, piece
from toy_system.network import Toy


class ToyRecordings:
    NAME = "Toy"
    ENROLMENT = FACES = causal = False
    CHANNELS = None
    LATENCY = "window"
    hop_size = 1

    def __init__(self, checkpoints):
        config = ours.read_config(checkpoints["toy"])
        self.model = Toy(**config["model"])
        readers.load_for_inference(checkpoints["toy"], "toy", self.model)
        self.sample_rate, self.talkers = config["sample_rate"], config["model"]["talkers"]

    def frames(self, samples):
        return samples

    def spool_bytes(self, samples):
        return 0

    def separate(self, samples, windows, spool, bar=None, enrolment=None):
        length = min(len(samples), windows.length)

        def separated():
            for start in windows.starts(len(samples)):
                yield start, np.array(self.model(piece(samples, start, length)[None])[0])
                if bar is not None:
                    bar.update(2)

        return join(separated())
