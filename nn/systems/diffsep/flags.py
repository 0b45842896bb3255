"""Flags that training and evaluation of diffusion separation share."""

from absl import flags


def define_data_flags():
    """Where data lie, for this script and for training."""
    flags.DEFINE_string("wsj0_mix", "data/wsj0_mix", "mixtures of talkers: holds 2speakers/ or 3speakers/")
    flags.DEFINE_string("vctk_demand", "data/VCTK_DEMAND", "noisy speech: holds train/ and test/")
    flags.DEFINE_string("librimix", "data/LibriMix", "holds 2speakers/, or Libri2Mix/ as LibriMix makes it")
    flags.DEFINE_enum("mode", "max", ["min", "max"], "length rule of the mixtures of talkers")
    flags.DEFINE_bool("resample", False, "take noisy speech of other rates, and resample it when it is read")
    flags.DEFINE_integer("n_speakers", 2, "talkers of a mixture", lower_bound=2)
    flags.DEFINE_integer("sample_rate", 8000, "Hz", lower_bound=4000)


# nn.systems.diffsep.recordings.Sampling's fields, and flags of other names.
SAMPLING_FLAGS = dict(
    steps="steps",
    snr="snr",
    corrector_steps="corrector_steps",
    denoise="denoise",
    schedule="schedule",
    exact="exact_steps",
    solver="solver",
    consistent="consistent",
    predictor="predictor",
    corrector="corrector",
    reuse="reuse",
    fresh="fresh",
    t_start="t_start",
)


def define_sampling_flags():
    """How the reverse process is walked; what is not given is as the checkpoint says, or as published."""
    flags.DEFINE_integer("steps", None, "N, steps of the reverse process; 30", lower_bound=1, short_name="N")
    flags.DEFINE_float("snr", None, "size of the corrector's steps; 0.5", lower_bound=0)
    flags.DEFINE_integer("corrector_steps", None, "of the corrector at every time; 1", lower_bound=0)
    flags.DEFINE_bool("denoise", None, "give the mean of the last state, without its noise; true")
    flags.DEFINE_enum("schedule", None, ["plain", "linear", "log", "revlog", "snr"], "of the times", short_name="s")
    flags.DEFINE_bool("exact_steps", None, "steps are as long as the schedule says; the reference's are all 1 / N")
    flags.DEFINE_enum(
        "solver", None, ["reference", "first", "multistep", "heun"],
        "reference: predictor and corrector; the others solve the linear part exactly, in far fewer calls",
    )  # fmt: skip
    flags.DEFINE_bool("consistent", None, "let the estimates sum to the mixture")
    flags.DEFINE_enum("predictor", None, ["reverse_diffusion", "euler_maruyama", "none"], "of the solver reference")
    flags.DEFINE_enum("corrector", None, ["ald2", "ald", "langevin", "none"], "of the solver reference")
    flags.DEFINE_bool("reuse", None, "correctors take the predictor's last estimate: about half of the calls")
    flags.DEFINE_float("fresh", None, "share of the noise that the other solvers draw anew at every step; 0", 0.0, 1.0)
    flags.DEFINE_float("t_start", None, "time to start at; 1", 0.001, 1.0)


def sampling_of_flags(values):
    """Those fields of nn.systems.diffsep.recordings.Sampling that flags were given for, or a preset has."""
    return {name: values[flag].value for name, flag in SAMPLING_FLAGS.items() if values[flag].value is not None}
