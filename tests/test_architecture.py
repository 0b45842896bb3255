"""The structure of the code: which part may import which, and that names of registered classes cannot collide."""

import ast
import importlib
import inspect
import json
import pathlib

import keras
import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("feat", "models", "nn")

# A part imports only parts of its own level or below. What is not named here is a command or its package.
LEVELS = {
    "feat.base": 0,
    "feat.signals": 0,
    "feat.corpora": 0,
    "feat.batches": 0,
    "feat.avspeech": 0,
    "models": 0,
    "nn.checkpoints": 1,
    "nn.scoring": 1,
    "nn.training": 2,
    "nn.recordings": 3,
    "nn.systems": 4,
}
COMMAND = 5


def module_files():
    """{dotted name: path} of all modules below PACKAGES."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imports(path):
    """Dotted names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


MODULES = module_files()
IMPORTS = {name: {other for other in imports(path) if other in MODULES} for name, path in MODULES.items()}


def level(module):
    """The level of a module, see LEVELS."""
    parts = module.split(".")
    if parts[0] == "models":
        return LEVELS["models"]
    return LEVELS.get(".".join(parts[:2]), COMMAND) if len(parts) > 2 else COMMAND


def is_package(module):
    return MODULES[module].name == "__init__.py"


def test_imports_go_down():
    upward = [
        f"{module} imports {other}"
        for module, others in IMPORTS.items()
        for other in others
        if not is_package(other) and level(other) > level(module)
    ]
    assert not upward


def test_only_tests_import_commands():
    imported = [
        f"{module} imports {other}"
        for module, others in IMPORTS.items()
        for other in others
        if not is_package(other) and level(other) == COMMAND
    ]
    assert not imported


def test_there_are_no_cycles():
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        path.append(module)
        for other in sorted(IMPORTS[module]):
            if not is_package(other):
                visit(other)
        path.pop()
        done.add(module)

    for module in MODULES:
        visit(module)


@pytest.mark.parametrize(
    "package, foreign", [("models", ("feat", "nn", "tensorflow", "absl")), ("feat", ("models", "nn"))]
)
def test_packages_do_without(package, foreign):
    wrong = [
        f"{module} imports {other}"
        for module, path in MODULES.items()
        if module.split(".")[0] == package
        for other in imports(path)
        if other.split(".")[0] in foreign
    ]
    assert not wrong


def registered_classes():
    """[class] of all Keras classes of the project, with all modules of models/ imported."""
    modules = [importlib.import_module(name) for name in MODULES if name.startswith("models")]
    kinds = [kind for module in modules for kind in vars(module).values() if isinstance(kind, type)]
    own = dict.fromkeys(kind for kind in kinds if kind.__module__.startswith("models."))
    return [kind for kind in own if keras.saving.get_registered_name(kind) != kind.__name__]


CLASSES = registered_classes()

# Small values of constructor arguments, by name. `epsilon` differs from all defaults, so that its loss would be seen.
ARGUMENTS = {
    "bottleneck": 4,
    "causal": False,
    "channels": 4,
    "dilation": 1,
    "dilations": 1,
    "epsilon": 0.25,
    "filters": 4,
    "inputs": 2,
    "kernel": 3,
    "kernel_size": 3,
    "late": False,
    "levels_db": {"mixture": -20.0, "enrolment": -25.0},
    "norm": "global",
    "outputs": 2,
    "repeats": 1,
    "rows": 64,
    "size": 2,
    "talkers": 2,
    "taps": 3,
    "units": 4,
    "width": 8,
}
NESTED = {"unet": "DenseUNet", "separator": "DenseUNet", "model": "SpexPlus", "extractor": "TargetExtractor"}
# The published sizes of these are too large for a test.
SIZES = {
    "DenseUNet": {"channels": 4, "scales": 1, "bins": 9},
    "SequentialGrouping": {"blocks": 1, "dilations": 1, "units": 4, "bottleneck": 4, "bins": 9, "scales": 1},
    "SpexPlus": {"filters": 4, "bottleneck": 4, "units": 4, "embedding_dim": 4, "speaker_units": 4, "dilations": 1},
    "ScoreModel": {"channels": 8, "multipliers": [1, 1], "blocks": 1, "attention": []},
    "NCSNpp": {"channels": 8, "multipliers": [1, 1], "blocks": 1, "attention": []},
    "FaceConv": {"kernel": (3, 3)},
    "LookingToListen": {
        "channels": 4,
        "lstm_units": 4,
        "units": 4,
        "video_channels": 4,
        "bins": 9,
        "frames": 8,
        "norm": "unit",
    },
    "UpConv2D": {"size": (2, 2)},
    "ConvNormRelu": {"kernel_size": (3, 3), "dilation": (1, 1)},
    "CDiffuse": {"layers": 1, "channels": 4, "cycle": 1},
}


def make(kind):
    """An instance of a registered class, of small size."""
    parameters = inspect.signature(kind.__init__).parameters
    values = {name: value for name, value in ARGUMENTS.items() if name in parameters} | SIZES.get(kind.__name__, {})
    for name, other in NESTED.items():
        if name in parameters:
            values[name] = make(next(found for found in CLASSES if found.__name__ == other))
    return kind(**values)


@pytest.mark.parametrize("kind", CLASSES, ids=keras.saving.get_registered_name)
def test_registered_classes_are_read_back_from_their_configuration(kind):
    assert keras.saving.get_registered_object(keras.saving.get_registered_name(kind)) is kind
    layer = make(kind)
    stored = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    again = keras.saving.deserialize_keras_object(stored)
    assert type(again) is kind
    assert json.loads(json.dumps(keras.saving.serialize_keras_object(again))) == stored
    if "epsilon" in inspect.signature(kind.__init__).parameters and hasattr(layer, "epsilon"):
        assert again.epsilon == layer.epsilon
