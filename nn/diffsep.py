"""DiffSep: trains a score network that takes talkers, or speech and noise, apart by reversing a diffusion.

    python nn/diffsep.py --preset icassp-separation --wsj0_mix data/wsj0_mix      trains on tr, checks on cv; the same
                                                                                  command goes on
    python nn/diffsep.py --preset noise-reduction --vctk_demand data/VCTK_DEMAND  the same for speech and noise

A preset is a set of values of flags; any flag that is given comes before it. To separate with what was trained, and to
score it: nn/separate.py, nn/diffsep_evaluate.py.
"""

from feat.base.script import run_script

import keras
from absl import flags

from feat.base.files import UserError
from nn.systems.diffsep.training import apply_preset, define_flags, train_model

FLAGS = flags.FLAGS


def main(_):
    keras.config.set_image_data_format("channels_last")
    if FLAGS.is_deploy != "0":
        raise UserError(
            f"--is_deploy {FLAGS.is_deploy}: this script trains; separate with nn/separate.py, score with"
            " nn/diffsep_evaluate.py"
        )
    apply_preset()
    train_model()


if __name__ == "__main__":
    define_flags()
    run_script(main)
