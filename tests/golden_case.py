"""Golden cases: numbers that the reference implementations computed, and the seeded weights behind them.

An .npz holds `meta` (JSON: system, kind, config, weights, tolerance), inputs `in/...`, outputs `out/...`,
scalars `loss/...`, gradients `grad/...` (norm, then the first four values) and intermediates `probe/...`
(the first eight values, then mean, standard deviation and norm).
"""

import json
import os
import zlib

import numpy as np
import tensorflow as tf

# A float32 port differs from a float32 reference by rounding; these are the least that is allowed for.
OUTPUT_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 5e-3
UPDATE_TOLERANCE = 1e-3


class Case:
    """One golden case: `meta` and the arrays by key."""

    def __init__(self, path):
        with np.load(path) as stored:
            self.arrays = {key: stored[key] for key in stored.files if key != "meta"}
            self.meta = json.loads(str(stored["meta"]))
        self.config = self.meta.get("config", {})

    def __getitem__(self, key):
        return self.arrays[key]

    def __contains__(self, key):
        return key in self.arrays

    def named(self, group):
        """{name: array} of the keys that start with `group`/."""
        return {key[len(group) + 1 :]: value for key, value in self.arrays.items() if key.startswith(group + "/")}

    def weights(self, key="weights"):
        """The reference checkpoint: {name: array}."""
        return {row["name"]: seeded_weight(**row) for row in self.meta[key]}

    def tolerance(self, name, least=OUTPUT_TOLERANCE):
        """Relative tolerance of an output."""
        known = self.meta.get("tolerance") or {}
        special = [self.meta.get("tolerance_" + name), known.get(name) if isinstance(known, dict) else known]
        return max([least, *[float(value) for value in special if value is not None]])

    def check(self, name, ours, theirs, least=OUTPUT_TOLERANCE):
        """Compares within the tolerance, relative to the largest value of `theirs`."""
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        assert ours.shape == theirs.shape, f"{name}: shape {ours.shape}, reference {theirs.shape}"
        scale = np.max(np.abs(theirs), initial=0)
        error = np.max(np.abs(ours - theirs), initial=0)
        tolerance = self.tolerance(name, least)
        assert error <= tolerance * max(scale, 1e-30), (
            f"{name}: off by {error:.3g}, {error / max(scale, 1e-30):.3g} of its scale; {tolerance:.3g} allowed"
        )


def seeded_weight(name, shape, base, std):
    """The float32 array that a row of meta.weights stands for."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return (base + std * generator.standard_normal(tuple(shape), dtype="float32")).astype("float32")


def summary(array):
    """What `probe/` keys hold of an array."""
    flat = np.asarray(array, np.float64).ravel()
    head = np.zeros(8)
    head[: min(8, flat.size)] = flat[:8]
    return np.concatenate([head, [flat.mean(), flat.std(), np.linalg.norm(flat)]])


def norm_and_head(array):
    """What `grad/` keys hold of an array: its norm and first four values."""
    flat = np.asarray(array, np.float64).ravel()
    head = np.zeros(4)
    head[: min(4, flat.size)] = flat[:4]
    return np.concatenate([[np.linalg.norm(flat)], head])


def write_saver_checkpoint(prefix, arrays):
    """Writes {name: array} as TF 1's Saver does; gives the prefix."""
    os.makedirs(os.path.dirname(prefix), exist_ok=True)
    names = list(arrays)
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(arrays[name]) for name in names],
    )
    return prefix
