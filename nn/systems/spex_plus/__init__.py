"""SpEx+: extracts the talker of an enrolment."""

from nn.systems.system import System


def define_options(live):
    """Flags of the level of what is extracted, and of its rejection."""
    from absl import flags

    from nn.systems.spex_plus.recordings import LEVELS, LIVE_LEVELS, REJECT

    if live:
        flags.DEFINE_enum("level", "projection", LIVE_LEVELS, "SpEx+: as loud as in the mixture so far, or as it comes")
        return
    flags.DEFINE_enum("level", "projection", LEVELS, "SpEx+: as loud as in the mixture, or its peak, or as it comes")
    flags.DEFINE_enum(
        "reject", "no", REJECT, "SpEx+: silence where the talker seems absent, from the file or from windows of it"
    )
    flags.DEFINE_float("threshold", None, "SpEx+: confidence of absence; default: as measured by --absent", -1, 1)


SYSTEM = System(
    name="spex_plus",
    title="SpEx+",
    checkpoints=("spex_plus",),
    package=__name__,
    recordings="TargetTalker",
    options=("level", "reject", "threshold"),
    define_options=define_options,
    exportable="spex_plus",
)
