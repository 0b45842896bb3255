"""The pipeline of SpEx+, see nn/systems/recipe.py."""

from feat.base.files import UserError
from feat.corpora.lists import rate_folder
from nn.systems.recipe import Command, Recipe, Result, Stage, When, common_results, make_talkers

COMMON = (
    "--variant={variant}",
    "--data_folder={data}",
    "--exp_name={exp_name}",
    "--time_stamp={time_stamp}",
    When("no_config", ("--sample_rate={rate}",)),
)

# Small enough for two CPU cores. Every number was tried on the built-in corpus.
SMALL = (
    "--filterbank=fourier",
    "--windows_ms=16,24,32",
    "--n_bottle=64",
    "--n_units=128",
    "--n_blocks=6",
    "--n_repeats=2",
    "--embedding_dim=64",
    "--n_speaker_units=64",
    "--l2=0",
    "--lr_schedule=cosine",
    "--learning_rate=3e-3",
    "--clip_norm=5",
    "--batch_size=4",
    "--segment_seconds=2",
    "--enrolment_seconds=3",
    "--keep_checkpoints=2",
    # As much training from triplets on disk as with dynamic mixing.
    When("makes_tr", ("--epoch=8",)),
    When("mixes", ("--both_talkers", "--snr_db=-5,5", "--epoch=8", "--epoch_mixtures=2000")),
)


def triplets(set_name, flags=(), presets=None, **options):
    """The Command that makes the triplets of a set."""
    folders = (f"--corpus_folder={{talkers}}/{set_name}", f"--output_folder={{data}}/{set_name}")
    flags = (*folders, "--sample_rate={rate}", *flags)
    return Command("feat/librispeech_mix.py", flags, presets or {}, scope=set_name, **options)


def settle(given):
    """{name: value} of the recipe's texts, see nn/systems/recipe.py."""
    small, config = given.preset == "small", given.value("config")
    if small and config:
        raise UserError("--config: sets what --preset small does too; add --preset original")
    variant = given.value("variant", "authors" if small or config.endswith(".py") else "seed")
    rate = given.number("sample_rate", 8000 if variant == "authors" else 16000)
    own_data, own_talkers = given.value("data_folder"), given.value("corpus_folder")
    data, exp_name = own_data or "triplets", given.value("exp_name", "spex_plus")
    # Where there are recordings of single talkers, the small preset mixes them anew at every step.
    mixes = given.is_on("dynamic_mixing", small and not (own_data and not own_talkers))
    return {
        "variant": variant,
        "rate": rate,
        "data": data,
        "talkers": own_talkers or f"{data}/talkers/voices/{rate_folder(rate)}",
        "talkers_folder": f"{data}/talkers",
        "instead": own_talkers or own_data,
        "models": f"exp/{exp_name}/models",
        "output": f"exp/{exp_name}/output_tt",
        "no_config": not config,
        "mixes": mixes,
        "makes_talkers": not (own_talkers or own_data),
        "makes_triplets": not own_data,
        "makes_tr": not own_data and not (small and mixes),
    }


RECIPE = Recipe(
    name="spex_plus",
    summary="extracts one talker, of whom there is another recording, from a mixture",
    time="7 minutes",
    product="extracted wavs in exp/spex_plus/output_tt/files",
    settle=settle,
    settled_flags=("data_folder", "corpus_folder", "dynamic_mixing", "nodynamic_mixing"),
    stage_flags=("is_deploy", "resume_model", "output_folder", "test", "set", "mixture", "enrolment", "output"),
    stages=(
        Stage("talkers", (make_talkers(400),)),
        Stage(
            "triplets",
            (
                triplets("tr", presets={"small": ("--nfiles=2000",)}, when="makes_tr"),
                triplets(
                    "cv",
                    presets={"small": ("--test", "--nfiles=40"), "original": ("--nfiles=1000",)},
                    when="makes_triplets",
                    otherwise="{data}: given, nothing to make",
                ),
                triplets("tt", ("--test",), {"small": ("--nfiles=100",)}, when="makes_triplets"),
            ),
        ),
        Stage(
            "training",
            (
                Command(
                    "nn/spex_plus.py",
                    (*COMMON, "--is_deploy=0", When("mixes", ("--dynamic_mixing", "--corpus_folder={talkers}/tr"))),
                    {"small": SMALL},
                ),
            ),
        ),
        Stage("extraction and evaluation", (Command("nn/spex_plus.py", (*COMMON, "--is_deploy=1")),)),
    ),
    results=(Result("extracted wavs", "{output}/files"), *common_results()),
    results_stage=4,
)
