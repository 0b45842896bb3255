"""Deep CASA: separates all talkers, by grouping within frames and then across frames."""

from nn.systems.system import System

SYSTEM = System(
    name="deep_casa",
    title="Deep CASA",
    checkpoints=("dense_unet", "sequential_grouping"),
    package=__name__,
    recordings="DeepCasa",
    options=("seed",),
    exportable="dense_unet",
)
