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


def define_sampling_flags():
    """How the reverse process is walked; None: as the checkpoint says."""
    flags.DEFINE_integer("steps", None, "N, steps of the reverse process", lower_bound=1, short_name="N")
    flags.DEFINE_float("snr", None, "size of the corrector's steps", lower_bound=0)
    flags.DEFINE_integer("corrector_steps", None, "of the corrector at every time", lower_bound=0)
    flags.DEFINE_bool("denoise", True, "give the mean of the last state, without its noise")
    flags.DEFINE_enum("schedule", None, ["linear", "log", "revlog", "snr"], "of the times", short_name="s")
    flags.DEFINE_bool("exact_steps", False, "steps are as long as the schedule says; the reference's are all 1 / N")
    flags.DEFINE_enum(
        "solver", None, ["reference", "first", "multistep", "heun"],
        "reference: predictor and corrector; the others solve the linear part exactly, in far fewer calls",
    )  # fmt: skip
    flags.DEFINE_bool("consistent", False, "let the estimates sum to the mixture")
