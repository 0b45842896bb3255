"""Set before TensorFlow runs in any test."""

import os

# The reference ran on Eigen's kernels. oneDNN rounds otherwise, and Adam's first steps magnify rounding.
# So does another division of the work among threads.
# Scripts that tests start run as users run them.
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
os.environ["TF_NUM_INTRAOP_THREADS"] = "2"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

# Two devices for the tests that train on several; all others use the first alone.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
