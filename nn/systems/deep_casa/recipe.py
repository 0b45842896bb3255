"""The pipeline of Deep CASA, see nn/systems/recipe.py."""

from nn.systems.recipe import Command, Recipe, Result, Stage, When, common_results

ALL_SETS = "tr,cv,tt"
COMMON = ("--data_folder={data}", "--wav_list_folder={lists}", "--exp_name={exp_name}")

# Small enough for two CPU cores. Every number was tried on the built-in corpus.
SMALL_STFT = ("--hop_size=128",)
SMALL_TRAINING = (
    *SMALL_STFT,
    "--n_layers=3",
    "--dynamic_mixing",
    "--lr_schedule=cosine",
    "--keep_checkpoints=2",
    "--clip_norm=5",
)
SMALL_SIMUL = (
    *SMALL_TRAINING,
    "--n_channels=16",
    "--keep_prob=1",
    "--segment_seconds=3",
    "--batch_size=1",
    "--learning_rate=4e-3",
    "--epoch=1",
)
SMALL_SEQ = (
    *SMALL_TRAINING,
    "--n_tcn_block=3",
    "--n_dilation_each_block=6",
    "--n_dilated_units=128",
    "--n_bottle=64",
    "--embedding_dim=20",
    "--keep_prob=0.9",
    "--segment_seconds=4",
    "--batch_size=4",
    "--learning_rate=1e-3",
    "--beta_2=0.99",
    "--epoch=4",
)


def simul(*flags, **options):
    """A Command of the first stage of Deep CASA."""
    return Command("nn/simul_group.py", (*COMMON, *flags), {"small": SMALL_SIMUL}, scope="simul", **options)


def seq(*flags, **options):
    """A Command of its second stage. What it does not read, it computes with the first stage."""
    flags = (*COMMON, When("on_the_fly", ("--simul_model={simul_model}",)), *flags)
    return Command("nn/seq_group.py", flags, {"small": SMALL_SEQ}, scope="seq", **options)


def settle(given):
    """{name: value} of the recipe's texts, see nn/systems/recipe.py."""
    exp_name, time_stamp = given.value("exp_name", "deep_casa"), given.value("time_stamp", "test")
    models = f"exp/{exp_name}/models"
    grouping = given.value("simul.pit", given.value("pit", "frame")) == "frame"
    simul_sets, seq_sets = _sets_read(given, "simul"), _sets_read(given, "seq")
    on_the_fly = seq_sets != ALL_SETS
    pictures = f"{models}/{time_stamp}_simul/pictures"
    if grouping:
        pictures += f"  {models}/{time_stamp}_seq/pictures"
    else:
        seq_sets = ""
    return {
        "data": given.value("data_folder", "corpus"),
        "lists": given.value("wav_list_folder", "corpus/lists"),
        "models": models,
        "output": f"exp/{exp_name}/output_tt",
        "scores": f"exp/{exp_name}/scores",
        "simul_model": f"{models}/{time_stamp}_simul/best",
        "pictures": pictures,
        "makes_corpus": not (given.value("data_folder") or given.value("wav_list_folder")),
        "grouping": grouping,
        "on_the_fly": on_the_fly,
        "feature_sets": max(simul_sets, seq_sets, key=len),
        "estimate_sets": seq_sets,
    }


def _sets_read(given, scope):
    """What a network reads from files: nothing on the fly, and no training set that is mixed from the wavs."""
    if given.is_on("on_the_fly", False, scope):
        return ""
    return "cv,tt" if given.is_on("dynamic_mixing", given.preset == "small", scope) else ALL_SETS


RECIPE = Recipe(
    name="deep_casa",
    summary="separates all talkers in a recording of one microphone",
    time="10 minutes",
    product="separated wavs in exp/deep_casa/output_tt/files",
    settle=settle,
    settled_flags=("data_folder", "wav_list_folder"),
    stage_flags=("is_deploy", "resume_model", "simul_model"),
    stages=(
        Stage(
            "corpus",
            (
                Command(
                    "feat/voices.py",
                    ("--corpus_folder={data}",),
                    {"small": ("--tr_talkers=200", "--tr_mixtures=1000", "--cv_mixtures=20", "--tt_mixtures=60")},
                    when="makes_corpus",
                    otherwise="{data}: given, nothing to make",
                ),
            ),
        ),
        Stage(
            "features",
            (
                Command(
                    "feat/feat_gen.py",
                    (*COMMON, "--sets={feature_sets}"),
                    {"small": SMALL_STFT},
                    when="feature_sets",
                    otherwise="computed from the wavs on the fly, nothing to make",
                ),
            ),
        ),
        Stage("training of simultaneous grouping", (simul("--time_stamp={time_stamp}_simul", "--is_deploy=0"),)),
        Stage(
            "estimates for sequential grouping",
            (
                simul(
                    "--resume_model={simul_model}",
                    "--is_deploy=2",
                    "--export_sets={estimate_sets}",
                    when="estimate_sets",
                    otherwise="made by the first stage on the fly, nothing to write",
                ),
            ),
            when="grouping",
        ),
        Stage(
            "training of sequential grouping",
            (seq("--time_stamp={time_stamp}_seq", "--is_deploy=0"),),
            when="grouping",
        ),
        Stage(
            "inference",
            (
                simul("--resume_model={simul_model}", "--is_deploy=1"),
                seq("--resume_model={models}/{time_stamp}_seq/best", "--is_deploy=1", when="grouping"),
            ),
        ),
        Stage(
            "evaluation",
            (
                Command(
                    "nn/evaluate.py",
                    (
                        "--data_folder={data}",
                        "--wav_list_folder={lists}",
                        "--output_folder={scores}",
                        When("grouping", ("--estimates=stage 1, oracle order={output}/oracle_order",)),
                        "--estimates=final={output}/files",
                    ),
                ),
            ),
        ),
    ),
    results=(Result("separated wavs", "{output}/files"), *common_results("{pictures}", "{scores}")),
    results_stage=7,
)
