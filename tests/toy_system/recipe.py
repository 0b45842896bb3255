"""Two stages: training, and separation of a recording."""

from nn.systems.recipe import Command, Recipe, Result, Stage

RECIPE = Recipe(
    name="toy",
    summary="separates nothing",
    time="a second",
    product="wavs in exp/toy/separated",
    settle=lambda given: {"output": f"exp/{given.value('exp_name', 'toy')}/separated"},
    stage_flags=("is_deploy",),
    stages=(
        Stage(
            "training", (Command("tests/toy_system/train.py", ("--exp_name={exp_name}",), {"small": ("--epoch=1",)}),)
        ),
        Stage(
            "separation",
            (
                Command(
                    "tests/toy_system/separate.py", ("--resume_model=exp/{exp_name}/models", "--output_dir={output}")
                ),
            ),
        ),
    ),
    results=(Result("separated wavs", "{output}"),),
    results_stage=2,
)
