"""Sequential grouping, the second stage of Deep CASA: which estimate of a frame belongs to which talker.

    python nn/seq_group.py --is_deploy 0                        trains on the stage-1 estimates beside the features
    python nn/seq_group.py --is_deploy 1 --resume_model PREFIX  separates tt: exp/<exp_name>/output_tt/files

With --on_the_fly the estimates are computed from --simul_model, the trained first stage, and no file of
estimates is needed; with --dynamic_mixing those of the training mixtures are.
"""

from feat.base.script import run_script

import keras
from absl import flags

from feat.base.files import UserError
from nn.systems.deep_casa import training
from nn.systems.deep_casa.seq import infer, train_stage

FLAGS = flags.FLAGS


def main(_):
    keras.config.set_image_data_format("channels_last")
    if FLAGS.is_deploy == "2":
        raise UserError("--is_deploy 2: the second stage exports nothing; use 0 or 1")
    {"0": train_stage, "1": infer}[FLAGS.is_deploy]()


def define_flags():
    """Flags of the command."""
    training.define_flags(learning_rate=2.5e-4, lr_decay=0.93)
    flags.DEFINE_float("keep_prob", 0.7, "probability of keeping each outer tap of the dilated filters", 0.0, 1.0)
    training.define_grouping_flags()
    flags.DEFINE_float("beta_2", 0.9, "of Adam", 0.0, 1.0)
    flags.DEFINE_string("simul_model", "", "checkpoint of the first stage, to make its estimates with")


if __name__ == "__main__":
    define_flags()
    run_script(main)
