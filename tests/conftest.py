"""Set before TensorFlow is imported by any test."""

import os

# The reference ran on Eigen's kernels. oneDNN rounds otherwise, and Adam's first steps magnify rounding.
# Scripts that tests start run as users run them.
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
