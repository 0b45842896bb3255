"""SpEx+: extracts one talker from a mixture, by enrolment recordings of that talker.

    python nn/spex_plus.py --data_folder triplets --is_deploy 0                   trains on triplets/tr, checks on
                                                                                  triplets/cv; the same command goes on
    python nn/spex_plus.py --data_folder triplets --is_deploy 1                   extracts triplets/tt, and scores it
    python nn/spex_plus.py --data_folder triplets --is_deploy 1 --absent --set cv  also by voices that are not there
    python nn/spex_plus.py --is_deploy 1 --resume_model CHECKPOINT --mixture MIX.wav --enrolment VOICE.wav \
        [--enrolment VOICE_2.wav] --output TALKER.wav                             extracts from one recording

The sets below --data_folder are of any layout of feat/corpora/triplets.py. CHECKPOINT is a prefix of ours, `best`
beside it, or a PyTorch file of ir4kgl/ss_dla or gemengtju/SpEx_Plus, whose sizes are read from it.
"""

from feat.base.script import run_script

import keras
from absl import flags

from feat.base.files import UserError
from nn.systems.spex_plus.training import apply_variant, define_flags, infer, train_model

FLAGS = flags.FLAGS


def main(_):
    keras.config.set_image_data_format("channels_last")
    apply_variant()
    if FLAGS.is_deploy == "2":
        raise UserError("--is_deploy 2: nothing to export; 0 trains, 1 extracts")
    {"0": train_model, "1": infer}[FLAGS.is_deploy]()


if __name__ == "__main__":
    define_flags()
    run_script(main)
