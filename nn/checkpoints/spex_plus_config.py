"""Configurations of the two reference implementations of SpEx+, as flags of nn/spex_plus.py.

A .json file is taken for one of ir4kgl/ss_dla (variant "seed"), a .py file for a conf.py of gemengtju/SpEx_Plus
("authors"), which is read but never run: numbers, strings, dictionaries, lists, names and arithmetic are understood.
"""

import ast
import json
import operator
import os

from feat.base.files import UserError, brief

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
OPTIMIZERS = {"adam": "adam", "adamw": "adamw"}
NORMS = {"gLN": "global", "cLN": "channel", "BN": "batch"}
MASKS = {"relu": "relu", "sigmoid": "sigmoid", "softmax": "softmax"}
LOSSES = {"MultiLoss": {}, "SISPDRLossWrapper": {"classification": 0.0}}
SHORT_WINDOW = 400  # of them in a second; the others are 4 and 8 times as long


class Values:
    """Nested settings that are taken out one by one; those that nobody took are left.

    Args:
        path: of their file, for messages.
        values: dictionaries in dictionaries.
    """

    def __init__(self, path, values):
        self.path = path
        self.rest = dict(_flat(values))
        self.flags = {}

    def take(self, key):
        """The value of a key such as "optimizer.args.lr", None if there is none."""
        return self.rest.pop(key, None)

    def number(self, key, flag, factor=1):
        """Takes a number for a flag."""
        value = self.take(key)
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"{self.path}: {key} is {value!r}; a number is needed")
        self.flags[flag] = factor * value

    def choice(self, key, flag, choices):
        """Takes a name for a flag."""
        value = self.take(key)
        if value is not None:
            self.flags[flag] = self._chosen(key, value, choices)

    def choices(self, key, choices):
        """Takes a name that stands for several flags."""
        value = self.take(key)
        if value is not None:
            self.flags |= self._chosen(key, value, choices)

    def require(self, key, value, why):
        """Takes a value, which may only be this one."""
        found = self.take(key)
        if found is not None and found != value:
            raise UserError(f"{self.path}: {key} is {found!r}, {value!r} is needed: {why}")

    def decay(self, key):
        """Takes the decay of the weights, which Adam adds to the gradient; AdamW's is not, and has one value here."""
        if self.flags.get("optimizer") == "adamw":
            self.require(key, 0.01, "AdamW takes rate * 0.01 of each weight off it")
        else:
            self.number(key, "l2")

    def windows(self, rate, keys):
        """Takes the lengths of windows, which follow from the rate: {key: times the short one}."""
        for key, times in keys.items():
            self.require(key, times * rate / SHORT_WINDOW, f"windows are of 2.5, 10 and 20 ms, at {rate} Hz")

    def _chosen(self, key, value, choices):
        if value not in choices:
            raise UserError(f"{self.path}: {key} is {value!r}; only {', '.join(choices)} can be taken over")
        return choices[value]


def _flat(values, before=""):
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{key}.")
        elif value not in ({}, [], None):
            yield f"{before}{key}", value


def read_reference_config(path):
    """({flag of nn/spex_plus.py: value}, [keys that are not taken over]) of a configuration.

    Raises:
        UserError: it is missing, cannot be understood, or asks for what is not there.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        if os.path.splitext(path)[1] == ".py":
            return _authors(path, _assignments(text))
        values = json.loads(text)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; give a config.json or a conf.py") from error
    except (ValueError, SyntaxError, TypeError, ArithmeticError) as error:
        raise UserError(f"{path}: not understood ({brief(error)}); give a config.json or a conf.py") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a configuration; give a config.json of ss_dla or a conf.py of SpEx_Plus")
    return _seed(path, values)


def _seed(path, values):
    values = Values(path, values)
    values.require("arch.type", "SpexPlus", "the only network here")
    values.number("preprocessing.sr", "sample_rate")
    windows = {f"arch.args.{key}": times for key, times in dict(L=1, L1=1, L2=4, L3=8).items()}
    values.windows(values.flags.get("sample_rate", 16000), windows)
    values.choice("name", "exp_name", _Any())
    values.number("arch.args.num_classes", "classes")
    hidden = values.take("arch.args.hidden")
    values.number("arch.args.embed_dim", "n_filters")
    if "n_filters" in values.flags:
        values.flags["embedding_dim"] = values.flags["n_filters"]
    if hidden is not None:
        values.flags |= {"n_bottle": hidden, "n_units": 2 * hidden}
    for key, flag in dict(speaker_encoder_hidden="n_speaker_units", B="n_blocks", R="n_repeats").items():
        values.number(f"arch.args.{key}", flag)
    values.number("data.train.batch_size", "batch_size")
    values.choice("optimizer.type", "optimizer", {"Adam": "adam", "AdamW": "adamw"})
    values.number("optimizer.args.lr", "learning_rate")
    values.decay("optimizer.args.weight_decay")
    values.choices("loss.type", LOSSES)
    for key, flag in dict(lambd="classification", alpha="middle", beta="long").items():
        values.number(f"loss.args.{key}", flag)
    schedules = {"OneCycleLR": "onecycle", "ReduceLROnPlateau": "plateau"}
    values.choice("lr_scheduler.type", "lr_schedule", schedules)
    values.number("lr_scheduler.args.max_lr", "learning_rate")  # the schedule overrules the optimizer's
    values.number("lr_scheduler.args.factor", "lr_decay")
    values.require("lr_scheduler.args.pct_start", 0.2, "the rate rises for a fifth of the steps")
    values.require("lr_scheduler.args.anneal_strategy", "cos", "the rate falls along a cosine")
    values.require("lr_scheduler.args.patience", 2, "the rate falls at the third epoch without improvement")
    values.number("lr_scheduler.args.epochs", "epoch")
    values.number("trainer.epochs", "epoch")
    values.number("trainer.grad_norm_clip", "clip_norm")
    return {"variant": "seed"} | values.flags, list(values.rest)


def _authors(path, values):
    values = Values(path, values)
    values.number("fs", "sample_rate")
    rate = values.flags.get("sample_rate", 8000)
    for part in ("train_data", "dev_data"):
        values.require(f"{part}.sample_rate", rate, "mixtures are of one rate")
    values.number("chunk_size", "segment_seconds", 1 / rate)
    values.number("chunk_len", "segment_seconds")
    values.windows(rate, {"nnet_conf.L": 1})
    sizes = dict(P="n_taps", N="n_filters", X="n_blocks", R="n_repeats", B="n_bottle", H="n_units")
    for key, flag in sizes.items():
        values.number(f"nnet_conf.{key}", flag)
    values.choice("nnet_conf.norm", "norm", NORMS)
    values.choice("nnet_conf.non_linear", "mask", MASKS)
    values.choice("nnet_conf.causal", "causal", {True: True, False: False})
    for key in ("num_spks", "nnet_conf.num_spks"):
        values.require(key, 1, "one talker is extracted")
    lists = [f"{part}_data.{kind}_scp" for part in ("train", "dev") for kind in ("mix", "ref", "aux")]
    paths = [str(values.rest.get(key)) for key in lists]
    folder = os.path.dirname(os.path.dirname(paths[0]))
    ours = [os.path.join(folder, part, f"{kind}.scp") for part in ("tr", "cv") for kind in ("mix", "ref", "aux")]
    if paths == ours:  # what nn/spex_plus.py finds below --data_folder
        values.flags["data_folder"] = folder
        for key in ("train_dir", "dev_dir", *lists):
            values.take(key)
    for key in ("spk_list", "dev_data.spk_list", "train_data.spk_list"):
        values.choice(key, "speakers_file", _Any())
    values.choice("trainer_conf.optimizer", "optimizer", OPTIMIZERS)
    for before in ("adam_kwargs", "trainer_conf.optimizer_kwargs"):
        values.number(f"{before}.lr", "learning_rate")
        values.decay(f"{before}.weight_decay")
    values.number("trainer_conf.factor", "lr_decay")
    values.require("trainer_conf.patience", 2, "the rate falls at the third epoch without improvement")
    values.require("trainer_conf.min_lr", 1e-8, "the lowest rate of the plateau rule")
    values.number("trainer_conf.logging_period", "log_steps")
    return {"variant": "authors"} | values.flags, list(values.rest)


class _Any(dict):
    """Choices of which each stands for itself."""

    def __contains__(self, key):
        return isinstance(key, str)

    def __missing__(self, key):
        return key


# conf.py ------------------------------------------------------------------------------------------


def _assignments(text):
    """{name: value} of the assignments at the top of a Python file."""
    names = {}
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign) and all(isinstance(target, ast.Name) for target in statement.targets):
            value = _value(statement.value, names)
            names |= {target.id: value for target in statement.targets}
    return names


def _value(node, names):
    """Value of an expression without calls."""
    if isinstance(node, ast.Name):
        if node.id not in names:
            raise ValueError(f"line {node.lineno}: {node.id} has no value")
        return names[node.id]
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_value(key, names): _value(value, names) for key, value in zip(node.keys, node.values)}
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = _value(node.left, names), _value(node.right, names)
        numbers = all(isinstance(x, (int, float)) for x in (left, right))
        if numbers or isinstance(node.op, ast.Add) and isinstance(left, str) and isinstance(right, str):
            return OPERATORS[type(node.op)](left, right)
    return ast.literal_eval(node)
