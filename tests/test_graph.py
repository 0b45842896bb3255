"""Graphs: what TensorFlow keeps of where their operations were made."""

import keras
import tensorflow as tf

from feat.base.graph import compiled


def test_operations_know_the_lines_of_the_project_alone():
    layer = keras.layers.Dense(2)
    layer.build((None, 3))

    def scaled(x):
        return 2 * layer(x)

    run = compiled(scaled, tf.TensorSpec([None, 3]))
    operations = [op for op in run.get_concrete_function().graph.get_operations() if op.type in ("MatMul", "Mul")]
    assert len(operations) == 2
    for operation in operations:
        files = [frame.filename for frame in operation.traceback]
        assert "scaled" in [frame.name for frame in operation.traceback if frame.filename == __file__]
        assert not any("/keras/" in file for file in files)
        assert sum("/tensorflow/" in file for file in files) <= 3
