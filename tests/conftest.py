"""Set before TensorFlow runs in any test."""

import os

# The reference ran on Eigen's kernels. oneDNN rounds otherwise, and Adam's first steps magnify rounding.
# So does another division of the work among threads.
# Scripts that tests start run as users run them.
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
os.environ["TF_NUM_INTRAOP_THREADS"] = "2"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import feat.base.script  # noqa: F401  its rarer search for garbage

import tensorflow as tf

# Two devices for the tests that train on several; all others use the first alone.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

# By their length. Started first, so that no process is left with one when the others have nothing to do any more.
LONGEST = [
    "test_scripts",
    "test_devices",
    "test_resume",
    "test_run",
    "test_golden",
    "test_export",
    "test_spex_plus",
    "test_benchmark",
    "test_streaming",
    "test_separate",
]


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))
