"""The pipeline of Looking to Listen, see nn/systems/recipe.py."""

import os

from nn.systems.recipe import Command, Recipe, Result, Stage, When, common_results

FOLDER = "--data_folder={data}"
COMMON = (FOLDER, "--exp_name={exp_name}", "--time_stamp={time_stamp}")

# Small enough for two CPU cores. Every number was tried on the built-in corpus.
SMALL_CORPUS = ("--tr_talkers=120", "--cv_talkers=15", "--tt_talkers=20", "--segments=2")
SMALL_CLIPS = ("--preset=ultrafast",)  # of x264
SMALL_MIXTURES = ("--train_mixtures=1000", "--val_mixtures=20", "--test_mixtures=60")
SMALL = (
    "--preset=small",
    "--dropout=0",
    "--loss=both",
    "--wave_weight=0.1",
    "--segment_seconds=1.5",
    "--batch_size=4",
    "--learning_rate=2e-3",
    "--lr_schedule=cosine",
    "--epoch=4",
    "--epoch_mixtures=800",
    "--keep_checkpoints=2",
)


def settle(given):
    """{name: value} of the recipe's texts, see nn/systems/recipe.py."""
    own_data, own_list = given.value("data_folder"), given.value("video_list")
    data, exp_name = own_data or "faces", given.value("exp_name", "looking_to_listen")
    videos, drawn = own_list or f"{data}/list.csv", not (own_data or own_list)
    listed = os.path.isfile(videos) or drawn and given.will_be_made(1)
    tested = os.path.isfile(f"{data}/test.csv") or drawn and given.will_be_made(3)
    return {
        "data": data,
        "list": videos,
        "instead": own_list or own_data,
        "models": f"exp/{exp_name}/models",
        "output": f"exp/{exp_name}/output_{'test' if tested else 'val'}",
        "conversation": f"exp/{exp_name}/conversation",
        "table": "test.csv" if tested else "val.csv",
        "drawn": drawn,
        "listed": listed,
        "mixes": given.is_on("dynamic_mixing", given.preset == "small"),
    }


RECIPE = Recipe(
    name="looking_to_listen",
    summary="separates the voices of the faces in a video",
    time="14 minutes (shared machine)",
    product="separated wavs in exp/looking_to_listen/output_test",
    settle=settle,
    settled_flags=("data_folder", "video_list", "dynamic_mixing", "nodynamic_mixing"),
    stage_flags=("is_deploy", "resume_model", "table", "list", "output_dir", "video", "swap_faces"),
    extras=("corpus", "faces"),
    stages=(
        Stage(
            "talking faces",
            (
                Command(
                    "feat/avspeech/talking_faces.py",
                    (FOLDER,),
                    {"small": SMALL_CORPUS},
                    when="drawn",
                    otherwise="{instead}: given, nothing to make",
                ),
            ),
        ),
        Stage(
            "clips, pieces of sound, faces",
            (
                Command(
                    "feat/avspeech/crop.py",
                    ("--list={list}", FOLDER, When("drawn", ("--video_folder={data}/videos",))),
                    {"small": SMALL_CLIPS},
                    when="listed",
                    otherwise="{list}: not there, so the clips in {data} are taken",
                ),
                Command("feat/avspeech/cut_audio.py", (FOLDER,)),
                # Where the drawn faces are is known. A detector that knows real ones finds only some of them.
                Command("feat/avspeech/embed_faces.py", (FOLDER, When("drawn", ("--detector=told",)))),
            ),
        ),
        Stage(
            "mixtures",
            (
                Command("feat/avspeech/mix.py", (FOLDER,), {"small": SMALL_MIXTURES}),
                Command("feat/avspeech/clean.py", (FOLDER,)),
            ),
        ),
        Stage(
            "training",
            (
                Command(
                    "nn/looking_to_listen.py",
                    (*COMMON, When("mixes", ("--dynamic_mixing",)), "--is_deploy=0"),
                    {"small": SMALL},
                ),
            ),
        ),
        Stage(
            "separation and evaluation",
            (
                Command(
                    "nn/looking_to_listen.py",
                    (
                        *COMMON,
                        "--resume_model={models}/{time_stamp}/best",
                        "--is_deploy=1",
                        "--swap_faces",
                        "--table={table}",
                    ),
                ),
            ),
        ),
        Stage(
            "a video of two talkers",
            (
                Command(
                    "nn/separate.py",
                    (
                        "--resume_model={models}/{time_stamp}/best",
                        "--detector=told",
                        "--render",
                        "--video={data}/conversation.mp4",
                        "--output_dir={conversation}",
                    ),
                ),
            ),
            when="drawn",
        ),
    ),
    results=(
        Result("separated wavs", "{output}"),
        *common_results(),
        Result("a video, and one a face", "{data}/conversation.mp4  {conversation}", when="drawn"),
    ),
    results_stage=5,
)
