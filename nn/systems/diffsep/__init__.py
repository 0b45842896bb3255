"""DiffSep: separates or enhances by reversing a diffusion."""

from nn.systems.system import System


def define_options(live):
    """Flags of the reverse process."""
    if live:
        return
    from absl import flags

    from nn.systems.diffsep.recordings import SOLVER_NAMES

    flags.DEFINE_integer("steps", None, "DiffSep: steps of the reverse process; default: as validated", lower_bound=1)
    flags.DEFINE_float("snr", None, "DiffSep: size of the corrector's steps", lower_bound=0)
    flags.DEFINE_integer("corrector_steps", None, "DiffSep: of the corrector at every time", lower_bound=0)
    flags.DEFINE_enum("solver", None, SOLVER_NAMES, "DiffSep: reference, or one of fewer calls; see the README")


SYSTEM = System(
    name="diffsep",
    title="DiffSep",
    checkpoints=("ncsnpp", "cdiffuse"),
    package=__name__,
    recordings="Diffusion",
    options=("steps", "snr", "corrector_steps", "solver", "seed"),
    define_options=define_options,
)
