"""What a recipe is: the stages of a pipeline, their commands and the flags of these, as data.

nn/systems/<system>/recipe.py contains the recipe of a system, and nn/pipeline.py runs it.

Texts contain names in braces, such as "{data}". They stand for values that the function `settle` of the recipe computes
from the flags that the user gave. A condition (`when`) is the name of such a value, which must not be empty.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from feat.base.files import UserError

PRESETS = ("small", "original")

# Flags of every pipeline, which need a value. No command gets them as they are.
PIPELINE_FLAGS = ("preset", "stage", "stop_stage", "exp_name", "time_stamp")

SWITCH_VALUES = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


@dataclass(frozen=True)
class When:
    """Texts that count only under a condition.

    Attributes:
        value: name of the value that must not be empty.
        texts: flags, or names of extras.
    """

    value: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Command:
    """One command of a stage.

    Attributes:
        path: file of the command.
        flags: what it gets for every preset, str or When.
        presets: {preset: what it gets too}. A preset that is not named leaves the defaults of the command.
        scope: `--SCOPE.FLAG` of the pipeline is meant for this command, and not for those of another scope.
        withheld: names of flags that it has, but that the pipeline does not hand to it.
        when: condition under which it runs, or "".
        otherwise: what is said if it does not run, or "".
    """

    path: str
    flags: tuple[str | When, ...] = ()
    presets: Mapping[str, tuple[str | When, ...]] = field(default_factory=dict)
    scope: str = ""
    withheld: tuple[str, ...] = ()
    when: str = ""
    otherwise: str = ""

    def own_flags(self, values):
        """[flag] that the recipe gives to the command."""
        return expand((*self.flags, *self.presets.get(values["preset"], ())), values)


@dataclass(frozen=True)
class Stage:
    """Commands that belong together.

    Attributes:
        title: what is said when the stage begins.
        commands: in their order.
        when: condition under which the pipeline has this stage at all, or "".
    """

    title: str
    commands: tuple[Command, ...]
    when: str = ""


@dataclass(frozen=True)
class Result:
    """Where something lies that the pipeline made.

    Attributes:
        what: name for the user.
        where: path, or a command that shows it.
        when: condition under which it is there, or "".
    """

    what: str
    where: str
    when: str = ""


@dataclass(frozen=True)
class Run:
    """One passage through the stages.

    Attributes:
        title: what is said at its beginning, or "".
        given: Given.
    """

    title: str
    given: "Given"


@dataclass(frozen=True)
class Recipe:
    """The pipeline of a system.

    Attributes:
        name: of the system.
        summary: what the system does, for the list of recipes.
        time: how long the small preset takes.
        product: the main result, for the list of recipes.
        stages: in their order. The first has the number 1.
        settle: function from Given to {name: value}. It is called again before every stage, as it may look for files.
        results: what is said at the end.
        results_stage: number of the stage that makes them.
        extras: of setup.py, str or When.
        settled_flags: names of flags that `settle` reads and that are not handed to commands.
        stage_flags: names of flags that the stages set and that the user cannot give.
        aliases: other names of the recipe.
        runs: function from Given to [Run], for recipes that go through their stages several times.
        finish: function from Given to text, called after the last run; or None.
    """

    name: str
    summary: str
    time: str
    product: str
    stages: tuple[Stage, ...]
    settle: Callable
    results: tuple[Result, ...]
    results_stage: int
    extras: tuple[str | When, ...] = ("corpus",)
    settled_flags: tuple[str, ...] = ()
    stage_flags: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    runs: Callable = lambda given: [Run("", given)]
    finish: Callable | None = None

    def values(self, given):
        """{name: value} of the flags that were given. Raises UserError."""
        common = {"preset": given.preset, "time_stamp": given.value("time_stamp", "test")}
        common["exp_name"] = given.value("exp_name", self.name)
        return common | self.settle(given)

    def commands(self):
        """[Command] of all stages."""
        return [command for stage in self.stages for command in stage.commands]

    def scopes(self):
        """Names of the scopes, in the order of the commands."""
        return list(dict.fromkeys(command.scope for command in self.commands() if command.scope))

    def flags_for_commands(self, given):
        """[(scope or "", name, flag)] of what was given for commands. Raises UserError for what the stages set."""
        chosen = []
        for name, value in given.flags:
            if name in (*PIPELINE_FLAGS, *self.settled_flags):
                continue
            scope, dot, bare = name.partition(".")
            if not (dot and scope in self.scopes()):
                scope, bare = "", name
            if bare in self.stage_flags:
                raise UserError(f"--{bare} is set by the stages; run the script itself to give it")
            chosen.append((scope, bare, f"--{bare}" if value is None else f"--{bare}={value}"))
        return chosen


def make_talkers(number, rate="{rate}", **options):
    """The Command that synthesises single talkers in {talkers_folder}, unless {instead} was given.

    Args:
        number: of talkers to train on, in the small preset.
        rate: text of the sample rate in Hz.
        options: of Command.
    """
    mixtures = ("--tr_mixtures=0", "--cv_mixtures=0", "--tt_mixtures=0")
    return Command(
        "feat/voices.py",
        ("--corpus_folder={talkers_folder}", f"--sample_rate={rate}", *mixtures),
        {"small": (f"--tr_talkers={number}", "--utterances_per_talker=4")},
        when="makes_talkers",
        otherwise="{instead}: given, nothing to make",
        **options,
    )


def common_results(pictures="{models}/{time_stamp}/pictures", scores="{output}/scores"):
    """The last results of every recipe."""
    return (
        Result("spectrogram pictures", pictures),
        Result("TensorBoard logs", ".venv/bin/tensorboard --logdir {models}"),
        Result("scores", scores),
    )


def expand(texts, values):
    """[text] with the values filled in, of str and When."""
    filled = []
    for text in texts:
        if not isinstance(text, When):
            filled.append(text.format_map(values))
        elif values[text.value]:
            filled += expand(text.texts, values)
    return filled


class Given:
    """The flags that the user gave to a pipeline.

    Attributes:
        flags: [(name, value)] in their order. The value of `--name` is None.
        plan_only: whether no command is run, so that files of earlier stages are not there yet.
    """

    def __init__(self, flags, plan_only=False):
        self.flags, self.plan_only = list(flags), plan_only
        self.preset = self.value("preset", PRESETS[0])
        if self.preset not in PRESETS:
            raise UserError(f"--preset {self.preset}: there are {' and '.join(PRESETS)}")
        self.stage, self.stop_stage = self._stage("stage", 1), self._stage("stop_stage", 9)

    @classmethod
    def parse(cls, arguments, plan_only=False):
        """Given of a command line: --name=value, --name value or --name.

        Raises:
            UserError: an argument is not a flag, or a value is missing or wrong.
        """
        flags, arguments = [], list(arguments)
        while arguments:
            argument = arguments.pop(0)
            if not argument.startswith("--"):
                raise UserError(f"{argument}: unexpected; flags are given as --name value")
            name, equals, value = argument[2:].partition("=")
            if not equals:
                value = arguments.pop(0) if arguments and not arguments[0].startswith("--") else None
            if value is None and name in PIPELINE_FLAGS:
                raise UserError(f"--{name}: a value is missing; give --{name} VALUE")
            flags.append((name, value))
        return cls(flags, plan_only)

    def value(self, name, default=""):
        """The last value that a flag was given, or else the default."""
        return next((value for its, value in reversed(self.flags) if its == name and value is not None), default)

    def number(self, name, default):
        """The value of a flag, a whole number above 0. Raises UserError."""
        text = self.value(name, str(default))
        if not text.isdecimal() or not int(text):
            raise UserError(f"--{name} {text}: should be a whole number above 0")
        return int(text)

    def is_on(self, name, default, scope=None):
        """Whether a switch is on; --SCOPE.NAME counts as --NAME does. Raises UserError."""
        names = {name, f"{scope}.{name}"} if scope else {name}
        off = {f"no{name}", f"{scope}.no{name}"} if scope else {f"no{name}"}
        on = default
        for its, value in self.flags:
            if its in off:
                on = False
            elif its in names:
                on = True if value is None else SWITCH_VALUES.get(value.lower())
                if on is None:
                    raise UserError(f"--{its}={value}: should be true or false")
        return on

    def runs_stage(self, number):
        """Whether the stage of this number was asked for."""
        return self.stage <= number <= self.stop_stage

    def will_be_made(self, number):
        """Whether a plan has the stage of this number, which would have made its files by now."""
        return self.plan_only and self.runs_stage(number)

    def replaced(self, **values):
        """Given with other values of some flags."""
        kept = [(name, value) for name, value in self.flags if name not in values]
        return Given(kept + [(name, value) for name, value in values.items() if value is not None], self.plan_only)

    def _stage(self, name, default):
        text = self.value(name, str(default))
        if not (text.isdecimal() and len(text) < 5):
            raise UserError(f"--{name} {text}: should be the number of a stage, such as --{name} 3")
        return int(text)
