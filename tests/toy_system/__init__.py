"""A system of a few lines: two talkers, each the mixture through a filter of three samples."""

from nn.systems.system import System

SYSTEM = System(
    name="toy",
    title="Toy",
    checkpoints=("toy",),
    package=__name__,
    recordings="ToyRecordings",
    exportable="toy",
)
