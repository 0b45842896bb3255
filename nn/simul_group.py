"""Simultaneous grouping, the first stage of Deep CASA: the spectra of the talkers, frame by frame.

    python nn/simul_group.py --is_deploy 0                       trains; the same command goes on
    python nn/simul_group.py --is_deploy 1 --resume_model PREFIX  separates tt with the frame order that the
                                                                 clean references choose: an upper bound
    python nn/simul_group.py --is_deploy 2 --resume_model PREFIX  writes <name>_simul_est.npy for stage 2

PREFIX is a checkpoint of ours, `best` beside it, or one of the original code.
"""

from feat.base.script import run_script

import keras
from absl import flags

from feat.corpora.lists import SETS
from nn.systems.deep_casa import training
from nn.systems.deep_casa.simul import export, infer, train_stage

FLAGS = flags.FLAGS


def main(_):
    keras.config.set_image_data_format("channels_last")
    {"0": train_stage, "1": infer, "2": export}[FLAGS.is_deploy]()


def define_flags():
    """Flags of the command."""
    training.define_flags(learning_rate=1e-4, lr_decay=0.84)
    flags.DEFINE_float("keep_prob", 0.5, "1 - drop-out before each down-sampling, not causal only", 0.0, 1.0)
    flags.DEFINE_integer("batch_frames", 200, "frames of a training segment, causal only", lower_bound=1)
    flags.DEFINE_enum("pit", "frame", ["frame", "utterance"], "choose the order in every frame, or once: uPIT")
    flags.DEFINE_list("export_sets", list(SETS), "sets whose estimates --is_deploy 2 writes")


if __name__ == "__main__":
    define_flags()
    run_script(main)
