"""The pipeline of DiffSep, see nn/systems/recipe.py."""

from feat.corpora.lists import rate_folder
from nn.systems.recipe import Command, Recipe, Result, Stage, When, common_results, make_talkers

FOLDERS = ("--wsj0_mix={mixtures}", "--vctk_demand={noisy}", "--mode={mode}")

# Small enough for two CPU cores. Every number was tried on the built-in corpus.
SMALL_MIXTURES = ("--tr_mixtures=3000", "--cv_mixtures=20", "--tt_mixtures=40")
SMALL_NOISY = ("--train_recordings=400", "--test_recordings=40")


def training(task, *flags, presets):
    """The Stage that trains the network of a task."""
    run = ("--exp_name={exp_name}", f"--time_stamp={{time_stamp}}_{task}", "--is_deploy=0")
    presets = {preset: (f"--preset={name}",) for preset, name in presets.items()}
    return Stage(f"training of {task}", (Command("nn/diffsep.py", (*FOLDERS, *flags, *run), presets, scope=task),))


def evaluation(task):
    """The Stage that runs the network of a task, and scores what comes out."""
    flags = (
        *FOLDERS,
        "--splits={splits}",
        f"--resume_model={{models}}/{{time_stamp}}_{task}/best",
        "--output_folder={results}",
    )
    presets = {"small": ("--num_workers=2",)}
    return Stage(f"{task} and evaluation", (Command("nn/diffsep_evaluate.py", flags, presets, scope=task),))


def settle(given):
    """{name: value} of the recipe's texts, see nn/systems/recipe.py."""
    small = given.preset == "small"
    own_mixtures, own_noisy = given.value("wsj0_mix"), given.value("vctk_demand")
    own_talkers, exp_name = given.value("corpus_folder"), given.value("exp_name", "diffsep")
    rate, noisy_rate = given.number("sample_rate", 8000), given.number("sample_rate", 8000 if small else 16000)
    speakers = given.value("n_speakers", "2")
    mixes = small or bool(own_talkers)
    # What is given to train on is taken as it is, unless there are recordings of talkers too.
    takes_mixtures, takes_noisy = own_mixtures and not own_talkers, own_noisy and not own_talkers
    mixes_talkers = not takes_mixtures and given.is_on("dynamic_mixing", mixes, "separation")
    mixes_noise = not takes_noisy and given.is_on("dynamic_mixing", mixes, "enhancement")
    return {
        "rate": rate,
        "noisy_rate": noisy_rate,
        "speakers": speakers,
        "mode": given.value("mode", "max"),
        "splits": given.value("splits", "test"),
        "mixtures": own_mixtures or "diffsep/mixtures",
        "noisy": own_noisy or "diffsep/noisy",
        "talkers": own_talkers or f"diffsep/talkers/voices/{rate_folder(noisy_rate)}",
        "talkers_folder": "diffsep/talkers",
        "instead": f"{own_mixtures}, {own_noisy}" if own_mixtures and own_noisy else own_talkers,
        "models": f"exp/{exp_name}/models",
        "results": f"exp/{exp_name}/results",
        "sets": "cv,tt" if mixes_talkers else "tr,cv,tt",
        "mixes_talkers": mixes_talkers,
        "mixes_noise": mixes_noise,
        # Two talkers of the built-in corpus, whose sexes are known.
        "easy_first": mixes_talkers and small and not own_talkers and speakers == "2",
        "makes_talkers": not own_talkers and not (own_mixtures and own_noisy),
        "makes_mixtures": not own_mixtures,
        "makes_noisy": not own_noisy,
    }


MIXING = ("--dynamic_mixing", "--corpus_folder={talkers}")

RECIPE = Recipe(
    name="diffsep",
    summary="separates talkers, and enhances noisy speech, by diffusion",
    time="17 minutes",
    product="sound and scores in exp/diffsep/results",
    settle=settle,
    settled_flags=(
        "wsj0_mix",
        "vctk_demand",
        "corpus_folder",
        "dynamic_mixing",
        "nodynamic_mixing",
        "sample_rate",
        "n_speakers",
        "mode",
        "splits",
    ),
    stage_flags=(
        "is_deploy",
        "resume_model",
        "output_folder",
        "corpus_root",
        "wsj0_root",
        "sample_rates",
        "modes",
        "sets",
        "talkers",
        "task",
        "draw",
        "published",
        "enhance",
        "tag",
    ),
    stages=(
        Stage(
            "corpora",
            (
                make_talkers(400, "{noisy_rate}", withheld=("tr_mixtures", "cv_mixtures", "tt_mixtures")),
                Command(
                    "feat/wsj0_mix.py",
                    (
                        "--draw",
                        "--corpus_root={talkers}",
                        "--output_folder={mixtures}",
                        "--talkers={speakers}",
                        "--sample_rates={rate}",
                        "--modes={mode}",
                        "--sets={sets}",
                    ),
                    {"small": SMALL_MIXTURES},
                    when="makes_mixtures",
                ),
                Command(
                    "feat/vctk_demand.py",
                    ("--corpus_root={talkers}", "--output_folder={noisy}", "--sample_rate={noisy_rate}"),
                    {"small": SMALL_NOISY},
                    when="makes_noisy",
                ),
            ),
        ),
        training(
            "separation",
            "--sample_rate={rate}",
            "--n_speakers={speakers}",
            When("mixes_talkers", (*MIXING, When("easy_first", ("--both_genders_epochs=2",)))),
            presets={"small": "small", "original": "icassp-separation"},
        ),
        evaluation("separation"),
        training(
            "enhancement",
            "--sample_rate={noisy_rate}",
            When("mixes_noise", MIXING),
            presets={"small": "small-enhancement", "original": "noise-reduction"},
        ),
        evaluation("enhancement"),
    ),
    results=(
        Result("sound, reverse process", "{results}/*/wav  {results}/*/fig"),
        *common_results("{models}/{time_stamp}_*/pictures", "{results}"),
    ),
    results_stage=3,
)
