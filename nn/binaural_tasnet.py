"""Binaural TasNet: separates talkers for two ears, and keeps the time and level differences between these.

    python nn/binaural_tasnet.py --data_folder binaural --is_deploy 0      trains on the set tr, checks on cv; the same
                                                                           command goes on
    python nn/binaural_tasnet.py --data_folder binaural --is_deploy 1      separates tt, and scores it
    python nn/binaural_tasnet.py --is_deploy 1 --resume_model CHECKPOINT --mixture MIX.wav --output_folder OUT
                                                                           separates one recording of two ears

--data_folder is what feat/binaural_mix.py writes, or a published Binaural-WSJ0Mix. --variant chooses the network and
the kind of mixtures. CHECKPOINT is a prefix of ours, `best` beside it, or a folder of SpeechBrain's checkpoints
(save/CKPT+..., or save itself, of which the best is taken).
"""

from feat.base.script import run_script

import keras
from absl import flags

from feat.base.files import UserError
from nn.systems.binaural_tasnet.training import DEFAULTS, define_flags, infer, train_model

FLAGS = flags.FLAGS


def main(_):
    keras.config.set_image_data_format("channels_last")
    for name, value in DEFAULTS.items():
        if not FLAGS[name].present:
            FLAGS[name].value = value
    if FLAGS.is_deploy == "2":
        raise UserError("--is_deploy 2: nothing to export; 0 trains, 1 separates")
    {"0": train_model, "1": infer}[FLAGS.is_deploy]()


if __name__ == "__main__":
    define_flags()
    run_script(main)
