"""Writes the STFT features and cut waveforms that training reads, for the lists of tr, cv and tt.

    python feat/feat_gen.py --data_folder DATA --wav_list_folder LISTS

The files are those of the original feat_gen.py (see feat/corpora/cache.py). Files that are there and whole are
kept, so a killed run goes on where it was.
"""

from feat.base.script import run_script

from absl import flags

from feat.corpora.features import (
    define_feature_flags,
    generate,
    settings_from_flags,
)
from feat.corpora.lists import SETS, read_names

FLAGS = flags.FLAGS


def main(_):
    settings = settings_from_flags()
    lists = {name: read_names(FLAGS.wav_list_folder, name, FLAGS.talkers) for name in FLAGS.sets}
    written, found = generate(settings, lists, FLAGS.num_workers)
    print(f"{settings.feat_folder}: {written} mixtures written, {found} found whole")


def define_flags():
    """Flags of the command."""
    define_feature_flags()
    flags.DEFINE_list("sets", list(SETS), "sets to compute")
    flags.DEFINE_integer("num_workers", 0, "processes; 0: one for every core", lower_bound=0)


if __name__ == "__main__":
    define_flags()
    run_script(main)
