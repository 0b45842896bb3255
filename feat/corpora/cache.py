"""The .npy files between the stages: names, shapes, whole-or-nothing writes, and what is wrong with one.

  <name>.npy            float32 [2 * (C + 1), frames, bins]: s1 real, s1 imaginary, s2 real, ..., mixture
  <name>_wave.npy       float32 [C + 1, samples]: s1, s2, ..., mixture, cut to the last whole frame
  <name>_simul_est.npy  float32 [C, padded frames, 2 * padded bins]: the unordered estimates of the first
                        stage with their padding; real and imaginary parts alternate

C talkers. All lie in exp/<exp_name>/feat/<set>/. Names and layout are those of yuzhou-git/deep-casa.
"""

import os
import struct

import numpy as np

from feat.base.files import UserError, atomic_path, unreadable


def feature_path(feat_folder, set_name, name):
    return os.path.join(feat_folder, set_name, name + ".npy")


def wave_path(feat_folder, set_name, name):
    return os.path.join(feat_folder, set_name, name + "_wave.npy")


def estimate_path(feat_folder, set_name, name):
    return os.path.join(feat_folder, set_name, name + "_simul_est.npy")


def write_array(path, array):
    """Writes a float32 .npy, whole or not at all."""
    array = np.ascontiguousarray(array, "<f4")
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        # Not np.save, whose error of a full disk does not say that it is one.
        file.write(array.data)


def array_shape(path):
    """Shape that the .npy at `path` promises, or None if it is missing, no float32 .npy, or cut short.

    Raises:
        UserError: it is there, but may not be read.
    """
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            size = os.fstat(file.fileno()).st_size
            whole = size == file.tell() + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    except (FileNotFoundError, ValueError, struct.error):
        return None
    except OSError as error:
        raise UserError(unreadable(path, error)) from error
    return shape if whole and dtype == np.dtype("<f4") and not fortran else None


def is_older(path, sources):
    """Whether any of the files that `path` was made from was changed after it was written."""
    return os.path.getmtime(path) < max(map(os.path.getmtime, sources))


def require_shape(path, expected, mend):
    """Shape of the array at `path`, which must fit `expected`, whose None entries stand for any length.

    Raises:
        UserError: the file is missing, cut short or of another shape; `mend` says what to do.
    """
    shape = array_shape(path)
    if shape is None:
        state = "truncated or not a float32 .npy" if os.path.exists(path) else "missing"
        raise UserError(f"{path}: {state}; {mend}")
    if len(shape) != len(expected) or any(e not in (None, s) for s, e in zip(shape, expected)):
        wanted = tuple("any" if e is None else e for e in expected)
        raise UserError(f"{path}: shape {shape}, but {wanted} is needed with these flags; {mend}")
    return shape
