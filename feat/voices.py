"""The built-in corpus: synthetic talkers saying our own sentences, mixed two by two like WSJ0-2mix.

    pip install -e .[corpus]
    python feat/voices.py --corpus_folder corpus

makes, with eSpeak NG and a voice of its own for every talker,

    corpus/voices/wav8k/{tr,cv,tt}/TALKER/TALKER_K.wav    utterances of single talkers
    corpus/voices/talkers.tsv, utterances.tsv             who they are and what they say
    corpus/2speakers/wav8k/min/{tr,cv,tt}/{s1,s2,mix}/    the mixtures
    corpus/lists/mix_2_spk_min_{tr,cv,tt}_mix             their names

Sets share neither talkers nor sentences. Killed at any moment, the same command goes on where it was;
the same seed gives the same files.
"""

from feat.base.script import run_script

from absl import flags

from feat.corpora.lists import SETS
from feat.corpora.voices import make_corpus


def define_flags():
    flags.DEFINE_string("corpus_folder", "corpus", "folder of the corpus")
    flags.DEFINE_integer("seed", 0, "draws who says what, and the mixtures")
    for set_name, talkers, mixtures in (("tr", 200, 2000), ("cv", 20, 200), ("tt", 20, 200)):
        flags.DEFINE_integer(f"{set_name}_talkers", talkers, f"talkers of the set {set_name}", lower_bound=0)
        flags.DEFINE_integer(f"{set_name}_mixtures", mixtures, f"mixtures of the set {set_name}", lower_bound=0)
    flags.DEFINE_integer("utterances_per_talker", 6, "utterances of two sentences, about 5 s", lower_bound=1)
    flags.DEFINE_integer("sample_rate", 8000, "Hz", lower_bound=4000)
    flags.DEFINE_integer("talkers", 2, "talkers of a mixture", lower_bound=2, upper_bound=3)
    flags.DEFINE_bool("overwrite", False, "replace what was made in the folder with other settings")
    flags.DEFINE_integer("num_workers", 0, "processes; 0: one for every core", lower_bound=0)


def main(_):
    values = flags.FLAGS
    summary = make_corpus(
        values.corpus_folder,
        seed=values.seed,
        talkers_per_set={name: values[f"{name}_talkers"].value for name in SETS},
        mixtures_per_set={name: values[f"{name}_mixtures"].value for name in SETS},
        utterances_per_talker=values.utterances_per_talker,
        sample_rate=values.sample_rate,
        talkers=values.talkers,
        overwrite=values.overwrite,
        num_workers=values.num_workers,
    )
    print(summary)


if __name__ == "__main__":
    define_flags()
    run_script(main)
