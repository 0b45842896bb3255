"""Looking to Listen: separates the voices whose faces are seen.

    python nn/looking_to_listen.py --is_deploy 0                      trains on faces/train.csv, checks on faces/val.csv
    python nn/looking_to_listen.py --is_deploy 0 --dynamic_mixing     mixes the pieces of faces/train.csv anew
    python nn/looking_to_listen.py --is_deploy 1 --table val.csv [--count 3]    separates a table's mixtures, and scores

The same command goes on where training was stopped. --data_folder (faces) is what feat/avspeech makes: audio/, mixed/,
embed/ and tables. --resume_model takes a prefix of ours, `best` beside it, or a PyTorch file of
vitrioil/Speech-Separation or of asteroid's recipe, whose sizes are read from it (--spectrogram asteroid for the
recipe's, --reshape for those trained before 13 February 2021).
"""

from feat.base.script import run_script

import keras
from absl import flags

from feat.base.files import UserError
from nn.scoring import metrics
from nn.systems.looking_to_listen.training import apply_presets, define_flags, infer, train_model

FLAGS = flags.FLAGS


def main(_):
    keras.config.set_image_data_format("channels_last")
    apply_presets()
    if FLAGS.is_deploy == "2":
        raise UserError("--is_deploy 2: nothing to export; 0 trains, 1 separates")
    unknown = set(FLAGS.metrics) - set(metrics.METRICS)
    if unknown or not FLAGS.metrics:
        raise UserError(f"--metrics {','.join(FLAGS.metrics)}: should be some of {', '.join(metrics.METRICS)}")
    {"0": train_model, "1": infer}[FLAGS.is_deploy]()


if __name__ == "__main__":
    define_flags()
    run_script(main)
