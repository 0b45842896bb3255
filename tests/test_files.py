"""Files are written whole or not at all, and what a killed process left is cleared away."""

import os
import subprocess
import sys

import pytest
import tensorflow as tf

from feat.base.files import (
    UserError,
    atomic_path,
    brief,
    free_bytes,
    make_writable_directory,
    require_free_bytes,
    size_text,
    write_text,
)
from feat.corpora import cache


def test_what_stood_there_survives_a_failure(tmp_path):
    path = tmp_path / "a.txt"
    write_text(str(path), "old")
    with pytest.raises(RuntimeError), atomic_path(str(path)) as temporary:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write("ne")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_leftovers_of_a_killed_process_go_and_those_of_a_running_one_stay(tmp_path):
    code = (
        "import os, sys\nfrom feat.base.files import atomic_path\n"
        "with atomic_path(sys.argv[1]): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "killed.npy")])
    (leftover,) = os.listdir(tmp_path)
    with atomic_path(str(tmp_path / "mine.npy")) as mine:
        make_writable_directory(str(tmp_path))
        assert os.listdir(tmp_path) == [os.path.basename(mine)]
    assert leftover.startswith(".") and os.listdir(tmp_path) == ["mine.npy"]


def test_an_array_that_may_not_be_read_is_not_called_truncated(tmp_path):
    (tmp_path / "a.npy").symlink_to("a.npy")  # what even root cannot open
    for look in (cache.array_shape, lambda path: cache.require_shape(path, (None,), "make it again")):
        with pytest.raises(UserError, match=r"a\.npy: cannot be read \(Too many levels of symbolic links\); mend"):
            look(str(tmp_path / "a.npy"))
    assert cache.array_shape(str(tmp_path / "missing.npy")) is None
    (tmp_path / "empty.npy").touch()
    assert cache.array_shape(str(tmp_path / "empty.npy")) is None


def test_sizes_of_small_corpora(tmp_path):
    assert [size_text(count) for count in (20_000, 99e6, 0.1e9, 2.5e9)] == ["0.02 MB", "99.00 MB", "0.10 GB", "2.50 GB"]
    with pytest.raises(UserError, match=r": the wavs need \d+\.\d\d GB, but"):
        require_free_bytes(str(tmp_path), free_bytes(str(tmp_path)) + 10**12, "the wavs")
    require_free_bytes(str(tmp_path), 1, "the wavs")


def test_what_an_operation_of_a_graph_said():
    @tf.function(input_signature=[tf.TensorSpec([None])])
    def tenth(x):
        return tf.gather(x, [9])

    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        tenth(tf.zeros([5]))
    assert caught.value.message.startswith("Graph execution error")
    assert brief(caught.value) == "indices[0] = 9 is not in [0, 5)"
