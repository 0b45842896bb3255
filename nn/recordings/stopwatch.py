"""Measures the time that the steps of a stream take."""

import time

import numpy as np

# Streams ------------------------------------------------------------------------------------------


class Stopwatch:
    """The stream of a system, and the seconds that its steps take.

    Args:
        voice: what `enrol` gave; None: `begin` is told.

    Attributes:
        samples: that have gone through.
        spent, worst: seconds, of all steps and of the longest.
    """

    def __init__(self, system, voice=None):
        self.system = system
        self.stream = stream = system.stream(voice)
        self.reset, self.flush, self.latency, self.inputs = stream.reset, stream.flush, stream.latency, stream.inputs
        self.spent = self.worst = 0.0
        self.samples = 0

    def begin(self, voice):
        """Forgets the recording; the next is of this voice, what `enrol` gave."""
        if self.system.ENROLMENT:
            self.stream.set_enrolment(voice)
        self.reset()

    def warm_up(self, block=0):
        """Compiles it before the first `block` of samples comes."""
        # The first frame goes alone, the rest together.
        silence = np.zeros(self.latency + max(self.stream.hop_size, block), np.float32)
        self.stream.step(silence if self.inputs is None else np.tile(silence, (self.inputs, 1)))
        self.reset()

    def step(self, samples):
        start = time.perf_counter()
        talkers = self.stream.step(samples)
        spent = time.perf_counter() - start
        self.spent += spent
        self.samples += samples.shape[-1]
        self.worst = max(self.worst, spent)
        return talkers

    def say_latency(self, block_seconds=None):
        """The algorithmic latency, of the system alone or with blocks of so many seconds."""
        window = 1e3 * self.latency / self.system.sample_rate
        if block_seconds is None:
            return f"latency {window:.1f} ms ({self.system.LATENCY} of {self.latency} samples)"
        block = 1e3 * block_seconds
        return (
            f"latency {window + block:.1f} ms: {self.system.LATENCY} {window:.1f} ms ({self.latency} samples), block"
            f" {block:.1f} ms"
        )

    def say_speed(self):
        """How many seconds went through, and the time that it took as a share of these."""
        heard = self.samples / self.system.sample_rate
        return f"{heard:.1f} s, real-time factor {self.spent / max(heard, 1e-9):.2f}"
