"""Runs the whole pipeline of a system, from the data to the scores. `./run.sh` installs what it needs, and starts it.

    python nn/pipeline.py                                          lists the recipes
    python nn/pipeline.py RECIPE --help                            lists the stages and the flags of a recipe
    python nn/pipeline.py RECIPE [--preset small|original] [--stage N] [--stop_stage N] [--plan] [FLAGS...]

FLAGS are handed to every command of the recipe that has them, and --SCOPE.FLAG to the commands of one scope alone, such
as --simul.epoch 3. --plan prints the commands and runs none. nn/systems/<system>/recipe.py contains the recipes.
"""

import functools
import importlib
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent import futures

from feat.base.files import UserError
from nn.systems import registry
from nn.systems.recipe import PIPELINE_FLAGS, PRESETS, Given, expand


def recipes():
    """[Recipe] of all systems."""
    return [system.load("recipe").RECIPE for system in registry.SYSTEMS]


class NotInstalledError(UserError):
    """A package that commands import is missing."""


def main(arguments):
    """Runs the command line without the name of the program, and returns the exit code."""
    try:
        return run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: what was finished is kept; the same command goes on from there", file=sys.stderr)
        return 128 + signal.SIGINT


def run(arguments):
    """`main`, but raises UserError."""
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("--help", "-h"):
        print(list_recipes())
        return 0
    recipe = next((recipe for recipe in recipes() if name in (recipe.name, *recipe.aliases)), None)
    if recipe is None:
        names = " | ".join(recipe.name for recipe in recipes())
        raise UserError(f"usage: ./run.sh {names} [flags...]; ./run.sh alone says more, and {name!r} is none of these")
    if "--help" in rest or "-h" in rest:
        print(describe(recipe))
        return 0
    plan_only = "--plan" in rest
    given = Given.parse((argument for argument in rest if argument not in ("--plan", "--install")), plan_only)
    runs = recipe.runs(given)
    values = [recipe.values(its.given) for its in runs]
    extras = dict.fromkeys(extra for its in values for extra in expand(recipe.extras, its))
    install = ["./run.sh", "install", ",".join(extras)] if "--install" in rest and not plan_only else None
    try:
        handed = hand_on(recipe, given, values)
    except NotInstalledError:
        if not install:
            raise
        if code := execute(install):
            return code
        handed = hand_on(recipe, given, values)
    if install and (code := execute(install)):
        return code
    for its, flags in zip(runs, handed):
        if its.title:
            print(f"=== {its.title}")
        if code := run_stages(recipe, its.given, flags):
            return code
    if recipe.finish and not plan_only and (text := recipe.finish(given)):
        print(text, end="")
    return 0


def run_stages(recipe, given, handed):
    """Goes through the stages once.

    Args:
        recipe, given: Recipe and Given.
        handed: for every command of the recipe [flag] of those that were given.

    Returns:
        The exit code of the command that failed, or 0.
    """
    start, handed = time.monotonic(), iter(handed)
    for number, stage in enumerate(recipe.stages, 1):
        values, flags_of_commands = recipe.values(given), [next(handed) for _ in stage.commands]
        if not given.runs_stage(number) or (stage.when and not values[stage.when]):
            continue
        print(f"== stage {number}: {stage.title} (after {time.monotonic() - start:.0f} s)")
        for command, flags in zip(stage.commands, flags_of_commands):
            if command.when and not values[command.when]:
                if command.otherwise:
                    print(command.otherwise.format_map(values))
                continue
            line = [python_path(), command.path, *command.own_flags(values), *flags]
            print("+", shlex.join(line), flush=True)
            if not given.plan_only and (code := execute(line)):
                return code
    if given.stage <= len(recipe.stages) and given.stop_stage >= recipe.results_stage:
        print()
        for result in recipe.results:
            if not result.when or values[result.when]:
                print(f"{result.what:<22} {result.where.format_map(values)}")
    if not given.plan_only:
        print(f"done in {time.monotonic() - start:.0f} s", flush=True)
    return 0


def hand_on(recipe, given, values):
    """Divides the flags that were given among the commands.

    Args:
        recipe, given: Recipe and Given.
        values: [{name: value}] of every passage through the stages.

    Returns:
        For every passage, for every command of the recipe, [flag].

    Raises:
        UserError: no command has a flag, or the stages set it, or a command does not take a value.
        NotInstalledError: the commands cannot be imported.
    """
    texts, commands = recipe.flags_for_commands(given), recipe.commands()
    if all(name in PIPELINE_FLAGS for name, _ in given.flags):
        return [[[] for _ in commands] for _ in values]  # reading the flags of the commands takes seconds
    requests = [(c.path, c.scope, c.withheld, c.own_flags(its)) for its in values for c in commands]
    taken = apart(share_out, requests, texts)
    return [taken[i : i + len(commands)] for i in range(0, len(taken), len(commands))]


def share_out(requests, texts):
    """[[flag]]: which flags each command takes.

    Args:
        requests: [(path, scope, names that are withheld, flags of the recipe)], one for each command.
        texts: [(scope, name, flag)] of the user.

    Raises:
        UserError: no command has a flag, or a command does not take a value.
    """
    from absl import flags

    taken = [[] for _ in requests]
    for scope, name, text in texts:
        users = [place for place, request in enumerate(requests) if scope in ("", request[1])]
        known = {flag.name: flag for place in users for flag in flags_of(requests[place][0])}
        takers = [place for place in users if _has_flag(requests[place][0], name)]
        if not takers:
            raise UserError(f"--{name}: no script of the pipeline has this flag" + _suggestion(known.values(), name))
        for place in takers:
            if name not in requests[place][2]:
                taken[place].append(text)
    for (path, _, _, own), more in zip(requests, taken):
        try:
            _flag_values(flags_of(path))([path, *own, *more])
        except flags.Error as error:
            raise UserError(f"{path}: {error}") from None
    return taken


@functools.cache
def flags_of(path):
    """[absl flag] that the command of this path defines. The command is imported, but not run."""
    from absl import flags

    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    before = set(flags.FLAGS)
    module.define_flags()
    # Another command may define flags of the same names.
    new = {name: flags.FLAGS[name] for name in set(flags.FLAGS) - before}
    for name in new:
        delattr(flags.FLAGS, name)
    return [flag for name, flag in sorted(new.items()) if name == flag.name]


def _has_flag(path, name):
    return any(name == flag.name or flag.boolean and name == f"no{flag.name}" for flag in flags_of(path))


def _flag_values(its_flags):
    from absl import flags

    values = flags.FlagValues()
    for flag in its_flags:
        values[flag.name] = flag
    return values


def _suggestion(its_flags, name):
    """Sentence with the flags that absl finds similar, or ""."""
    from absl import flags

    try:
        _flag_values(its_flags)(["", f"--{name}=0"])
    except flags.UnrecognizedFlagError as error:
        similar = str(error).partition("Did you mean: ")[2].removesuffix(" ?")
        return f". Did you mean --{' or --'.join(similar.split(', '))}?" if similar else ""
    return ""


def apart(function, *arguments):
    """Calls a function in a process of its own, so that TensorFlow does not stay in memory while commands run."""
    spawn = multiprocessing.get_context("spawn")
    with futures.ProcessPoolExecutor(1, spawn, initializer=_be_quiet) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except ModuleNotFoundError as error:
            raise NotInstalledError(f"{error.name} is not installed; run ./run.sh install corpus") from error
        except futures.process.BrokenProcessPool as error:
            raise UserError(f"the flags of the commands could not be read: {error}") from error


def _be_quiet():
    """Hides what TensorFlow says when it is imported."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def execute(line):
    """Runs a command, and returns its exit code as a shell does. Ctrl-C and SIGTERM are left to the command."""
    process, interrupts = None, []
    handlers = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number)),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: process and process.terminate()),
    }
    try:
        process = subprocess.Popen(line)
        code = process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if code:
        return code if code > 0 else 128 - code
    return 128 + signal.SIGINT if interrupts else 0


def python_path():
    """Path of this Python, short enough to be read."""
    path = os.path.relpath(sys.executable)
    return sys.executable if path.startswith(os.pardir) else path


def list_recipes():
    """What `./run.sh` alone says."""
    lines = [
        "./run.sh RECIPE [flags...]    installs what the recipe needs, and runs the whole pipeline",
        "./run.sh RECIPE --help        lists the stages and the flags of a recipe",
        "./run.sh RECIPE --plan        prints the commands, and runs none",
        "./run.sh test [arguments...]  installs and runs the tests, with arguments of pytest",
        "./run.sh lint                 installs and runs ruff",
        "",
        "Recipes, with the time of the small preset on two cores of an AMD EPYC, including the installation:",
    ]
    for recipe in recipes():
        lines.append(f"  {recipe.name:<18} {recipe.summary}; {recipe.time}; {recipe.product}")
    return "\n".join(lines)


def describe(recipe):
    """What `./run.sh RECIPE --help` says."""
    lines = [f"./run.sh {recipe.name} [flags...]    {recipe.summary}", "", "Stages:"]
    for number, stage in enumerate(recipe.stages, 1):
        paths = dict.fromkeys(command.path for command in stage.commands)
        lines.append(f"  {number}  {stage.title:<36} {', '.join(paths)}")
    flags = [name for name in recipe.settled_flags if not name.startswith("no")]
    lines += [
        "",
        f"--preset {'|'.join(PRESETS)}        sizes and schedules: small ones, or the published ones",
        "--stage N, --stop_stage N      first and last stage to run",
        "--exp_name, --time_stamp       names of the experiment and of the run",
        "--plan                         prints the commands, and runs none",
        f"--{', --'.join(flags)}: see nn/systems/{recipe.name}/README.md",
        "Any other flag is handed to every command that has it. `python COMMAND --helpfull` lists them.",
    ]
    if recipe.scopes():
        lines.append(f"A flag for some commands alone: --{'.FLAG, --'.join(recipe.scopes())}.FLAG")
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.exit(main(sys.argv[1:]))
