"""The structure of the code: which part may import which, and that names of registered classes cannot collide."""

import ast
import importlib
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


def test_every_registered_class_has_a_name_of_its_own():
    classes = set()
    for module in MODULES:
        if module.startswith("models"):
            found = vars(importlib.import_module(module)).values()
            classes |= {kind for kind in found if isinstance(kind, type) and kind.__module__ == module}
    registered = {kind: keras.saving.get_registered_name(kind) for kind in classes}
    registered = {kind: name for kind, name in registered.items() if name != kind.__name__}
    assert len(registered) > 30
    for kind, name in registered.items():
        assert keras.saving.get_registered_object(name) is kind, name


def test_layers_of_equal_names_are_read_back():
    grouping = importlib.import_module("models.deep_casa.grouping")
    importlib.import_module("models.diffsep.ncsnpp")
    block = grouping.ResidualBlock(4, 1)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(block))
    assert type(again) is grouping.ResidualBlock and again.get_config() == block.get_config()
