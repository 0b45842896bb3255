"""nn/separate.py on mixture.wav, with the toy system among the others."""

import runpy
import sys

from absl import flags

import toy_system
from nn.systems import registry


def define_flags():
    flags.DEFINE_string("resume_model", "", "folder of the checkpoints")
    flags.DEFINE_string("output_dir", "", "folder of the separated files")


if __name__ == "__main__":
    registry.SYSTEMS.append(toy_system.SYSTEM)
    sys.argv = ["nn/separate.py", "mixture.wav", *sys.argv[1:]]
    runpy.run_path("nn/separate.py", run_name="__main__")
