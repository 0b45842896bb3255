"""Binaural TasNet: separates talkers for two ears, and keeps their spatial cues."""

from nn.systems.system import System

SYSTEM = System(
    name="binaural_tasnet",
    title="Binaural TasNet",
    checkpoints=("mimo_tasnet",),
    package=__name__,
    recordings="Binaural",
)
