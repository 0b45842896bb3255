"""Files are written whole or not at all, and what a killed process left is cleared away."""

import os
import subprocess
import sys

import pytest
import tensorflow as tf

from feat.files import atomic_path, brief, make_writable_directory, write_text


def test_what_stood_there_survives_a_failure(tmp_path):
    path = tmp_path / "a.txt"
    write_text(str(path), "old")
    with pytest.raises(RuntimeError), atomic_path(str(path)) as temporary:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write("ne")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_leftovers_of_a_killed_process_go_and_those_of_a_running_one_stay(tmp_path):
    code = "import os, sys\nfrom feat.files import atomic_path\nwith atomic_path(sys.argv[1]): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "killed.npy")])
    (leftover,) = os.listdir(tmp_path)
    with atomic_path(str(tmp_path / "mine.npy")) as mine:
        make_writable_directory(str(tmp_path))
        assert os.listdir(tmp_path) == [os.path.basename(mine)]
    assert leftover.startswith(".") and os.listdir(tmp_path) == ["mine.npy"]


def test_what_an_operation_of_a_graph_said():
    @tf.function(input_signature=[tf.TensorSpec([None])])
    def tenth(x):
        return tf.gather(x, [9])

    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        tenth(tf.zeros([5]))
    assert caught.value.message.startswith("Graph execution error")
    assert brief(caught.value) == "indices[0] = 9 is not in [0, 5)"
