"""The pipeline of Binaural TasNet, see nn/systems/recipe.py."""

import os

from feat.base.files import UserError, write_text
from feat.corpora.lists import rate_folder
from nn.systems.recipe import Command, Recipe, Result, Run, Stage, When, common_results, make_talkers

COMMON = (
    "--variant={variant}",
    "--talkers={talkers}",
    "--sample_rate={rate}",
    "--mode={mode}",
    "--data_folder={data}",
    "--exp_name={exp_name}",
    "--time_stamp={time_stamp}",
)

# Small enough for two CPU cores. Every number was tried on the built-in corpus.
SMALL = (
    "--filterbank=fourier",
    "--window={window}",
    "--n_filters={n_filters}",
    "--n_bottle=64",
    "--n_units=128",
    "--n_blocks=6",
    "--n_repeats=2",
    "--nospeed_perturb",
    "--lr_schedule=cosine",
    "--learning_rate=2e-3",
    "--batch_size=4",
    "--segment_seconds=2",
    "--epoch=4",
    "--keep_checkpoints=2",
    When("mixes", ("--epoch_mixtures=3000",)),
)
SMALL_MIXTURES = ("--tr_mixtures=3000", "--cv_mixtures=20", "--tt_mixtures=100")


def settle(given):
    """{name: value} of the recipe's texts, see nn/systems/recipe.py."""
    kind, talkers, variant = _choose_kind(given)
    rate = given.number("sample_rate", 8000)
    own_data, own_talkers = given.value("data_folder"), given.value("corpus_folder")
    published, rooms = given.value("metadata_folder"), given.value("brir_folder")
    data, exp_name = own_data or "binaural", given.value("exp_name", f"binaural_{kind}")
    # Where there are recordings of single talkers, the small preset mixes them anew at every step.
    mixes = given.preset == "small" and not (published or rooms) and not (own_data and not own_talkers)
    mixes = given.is_on("dynamic_mixing", mixes)
    instead = published or own_talkers or own_data
    return {
        "kind": kind,
        "talkers": talkers,
        "variant": variant,
        "rate": rate,
        "mode": given.value("mode", "min"),
        "data": data,
        "corpus": own_talkers or f"{data}/talkers/voices/{rate_folder(rate)}",
        "talkers_folder": f"{data}/talkers",
        "instead": instead,
        "exp_name": exp_name,
        "models": f"exp/{exp_name}/models",
        "output": _output_folder(exp_name, given),
        "window": rate // 125 * 2,
        "n_filters": rate // 125 * 4,
        "sets": "cv,tt" if mixes else "tr,cv,tt",
        "mixes": mixes,
        "unpublished": not published,
        "makes_talkers": not instead,
        "makes_mixtures": not own_data,
        "simulates_rooms": kind == "reverb" and not (own_data or rooms),
    }


def _choose_kind(given):
    """(kind of mixtures, talkers, variant) of the flags. Raises UserError if they do not go together."""
    kind, talkers, variant = given.value("kind"), given.value("talkers"), given.value("variant")
    if not kind:
        kind = variant.removeprefix("parallel-") if variant.startswith("parallel-") else f"{talkers or 2}speakers"
    if kind in ("2speakers", "3speakers"):
        talkers, variant = talkers or kind.removesuffix("speakers"), variant or "parallel"
        fits = talkers == kind.removesuffix("speakers")
        if fits and "-" in variant:
            raise UserError(f"--variant {variant}: not for --kind {kind}")
    elif kind in ("noise", "reverb"):
        talkers, variant = talkers or "2", variant or f"parallel-{kind}"
        fits = (talkers, variant) == ("2", f"parallel-{kind}")
    else:
        raise UserError(f"--kind {kind}: there are 2speakers, 3speakers, noise and reverb")
    if not fits:
        raise UserError(f"--kind {kind} does not go with --talkers {talkers} and --variant {variant}")
    return kind, talkers, variant


def _output_folder(exp_name, given):
    return f"exp/{exp_name}/output_{given.value('set', 'tt')}"


def _configurations(given):
    """Names of the variants that --configurations asks for."""
    names = given.value("configurations")
    if names == "all":
        names = "independent,cross,parallel"
        # Noise and rooms are mixtures of another kind, of two talkers.
        if not (given.value("kind") or given.value("talkers")):
            names += ",parallel-noise,parallel-reverb"
    return [name for name in names.split(",") if name]


def _experiments(given):
    return {name: f"{given.value('exp_name', 'binaural')}_{name}" for name in _configurations(given)}


def runs(given):
    """[Run] of every variant of --configurations, or the one Run without it. Raises UserError."""
    experiments = _experiments(given)
    if not experiments:
        return [Run("", given)]
    if given.value("variant"):
        raise UserError("--variant does not go with --configurations, which names them")
    return [
        Run(variant, given.replaced(configurations=None, variant=variant, exp_name=exp_name))
        for variant, exp_name in experiments.items()
    ]


def finish(given):
    """Joins the tables of --configurations in one file, and returns it as text."""
    experiments = _experiments(given)
    if not experiments or given.stop_stage < len(RECIPE.stages):
        return ""
    tables = []
    for exp_name in experiments.values():
        with open(os.path.join(_output_folder(exp_name, given), "table.txt"), encoding="utf-8") as file:
            tables.append(file.read().splitlines(keepends=True))
    # The head, a line of each, and once what the columns mean.
    text = "".join([*tables[0][:2], *(line for table in tables for line in table[2:3]), *tables[0][3:]])
    path = f"exp/{given.value('exp_name', 'binaural')}_configurations/table.txt"
    write_text(path, text)
    return f"\n=== {path}\n{text}"


RECIPE = Recipe(
    name="binaural_tasnet",
    aliases=("binaural",),
    summary="separates talkers for two ears, and keeps their directions",
    time="9 minutes",
    product="separated wavs in exp/binaural_2speakers/output_tt/audio_results",
    settle=settle,
    settled_flags=(
        "data_folder",
        "corpus_folder",
        "kind",
        "variant",
        "talkers",
        "dynamic_mixing",
        "nodynamic_mixing",
        "sample_rate",
        "mode",
        "configurations",
    ),
    stage_flags=("is_deploy", "resume_model", "output_folder", "corpus_root", "sample_rates", "modes", "mixture"),
    extras=("corpus", When("simulates_rooms", ("room",))),
    stages=(
        Stage("talkers", (make_talkers(400, withheld=("tr_mixtures", "cv_mixtures", "tt_mixtures")),)),
        Stage(
            "binaural mixtures",
            (
                Command(
                    "feat/binaural_mix.py",
                    (
                        When("unpublished", ("--corpus_root={corpus}",)),
                        "--output_folder={data}",
                        "--kind={kind}",
                        "--sample_rates={rate}",
                        "--modes={mode}",
                        "--sets={sets}",
                    ),
                    {"small": SMALL_MIXTURES},
                    when="makes_mixtures",
                    otherwise="{data}: given, nothing to make",
                ),
            ),
        ),
        Stage(
            "training",
            (
                Command(
                    "nn/binaural_tasnet.py",
                    (*COMMON, "--is_deploy=0", When("mixes", ("--dynamic_mixing", "--corpus_folder={corpus}"))),
                    {"small": SMALL},
                ),
            ),
        ),
        Stage("separation and evaluation", (Command("nn/binaural_tasnet.py", (*COMMON, "--is_deploy=1")),)),
    ),
    results=(Result("separated wavs", "{output}/audio_results"), *common_results(scores="{output}")),
    results_stage=4,
    runs=runs,
    finish=finish,
)
