r"""Scores folders of separated speech against the references, several systems in one table.

    python nn/evaluate.py --set tt --output_folder scores \
        --estimates "stage 1, oracle order=exp/deep_casa_wsj/output_tt/simul_group" \
        --estimates "final=exp/deep_casa_wsj/output_tt/files"

An estimate folder holds one of

  <name>.bin      raw little-endian float32, C order, [3 * talkers, samples]: the references s1, s2, ...,
                  then the outputs 1, 2, ..., then the mixture, once for every talker;
  <name>_s1.wav   one wav for every output. References and mixture then come from --data_folder in the
                  layout of WSJ0-2mix and the names from --wav_list_folder.

Or .scp lists ("key path" a line) are scored against others, one of each for every talker, whatever made them:

    python nn/evaluate.py --output_folder scores --talkers 2 --estimates "ours=EST_1.scp,EST_2.scp" \
        --references REF_1.scp,REF_2.scp --mixtures MIX.scp

The keys of the references are scored; estimate and reference count up to the end of the shorter. Without --mixtures
there is no row of the mixture, and nothing that is measured against it.

Outputs may be in any order; the one with the largest sum of SI-SDR counts. With --talkers 1, the wanted one
of a mixture, also how often another was taken for that one. With --genders_file there is a table of who
talks against whom (the names of the mixtures say who); one by the level in the mixture comes whenever the
levels differ. A `<name>_assign.npz` beside
the estimates, with `assign` and `oracle` ([frames] or [frames, talkers], see `metrics.frame_accuracy`)
and `weight` [frames], adds the accuracy of the frame assignment.

Output: the table and the exact definition of every number in it, also as table.txt; scores.csv with a
line for every utterance, system and talker; summary.json.
"""

import os

from feat.base.script import run_script

from absl import flags

from feat.base.files import UserError, make_writable_directory
from feat.corpora.scp import ROOT_HELP
from feat.corpora.talkers import read_genders
from nn.scoring import metrics
from nn.scoring.report import DEFAULT_METRICS, evaluate, write_report

# Script -----------------------------------------------------------------------------------------------


def define_flags():
    """Defines the flags of the script; not at import, so that other scripts may use this module."""
    flags.DEFINE_multi_string(
        "estimates", [], "Folder of estimates, or EST_1.scp,EST_2.scp; or label=any of these; repeat for more rows."
    )
    flags.DEFINE_list("references", [], "REF_1.scp,REF_2.scp, one for every talker, for estimates of .scp lists.")
    flags.DEFINE_string("mixtures", "", "MIX.scp, for what is gained over the mixture.")
    flags.DEFINE_list("scp_root", [], ROOT_HELP)
    flags.DEFINE_string("data_folder", "", "References and mixtures, for wav estimates: holds 2speakers/.")
    flags.DEFINE_string("wav_list_folder", "", "Holds mix_2_spk_min_tt_mix; if empty, all .bin files count.")
    flags.DEFINE_string("set", "tt", "Set to score: tr, cv or tt.")
    flags.DEFINE_string("output_folder", "", "Takes table.txt, scores.csv and summary.json.")
    flags.DEFINE_list("metrics", list(DEFAULT_METRICS), f"Any of {', '.join(metrics.METRICS)}.")
    flags.DEFINE_integer("num_workers", 0, "Processes; 0 for all cores.")
    flags.DEFINE_integer("talkers", 2, "Talkers in every mixture.")
    flags.DEFINE_integer("sample_rate", 8000, "Sample rate in Hz, which .bin files do not tell.")
    flags.DEFINE_string("source", "auto", "bin or wav; auto takes .bin files where a folder has both.")
    flags.DEFINE_string("genders_file", "", "Talkers and M or F, such as LibriSpeech's SPEAKERS.TXT: a table of both.")
    flags.DEFINE_string("oracle", "", "Label in oracle frame order; if empty, the one that says so.")


def main(argv):
    del argv
    options = flags.FLAGS
    if not options.output_folder:
        raise UserError("--output_folder: missing; say where the scores go")
    folders = _labelled_folders(options.estimates)
    oracle = _oracle_label(folders, options.oracle)
    make_writable_directory(options.output_folder)
    evaluation = evaluate(
        folders,
        data_folder=options.data_folder,
        wav_list_folder=options.wav_list_folder,
        set_name=options.set,
        talkers=options.talkers,
        sample_rate=options.sample_rate,
        metric_names=options.metrics,
        source=options.source,
        num_workers=options.num_workers,
        genders=read_genders(options.genders_file) if options.genders_file else None,
        references=options.references,
        mixtures=options.mixtures,
        roots=options.scp_root,
    )
    print(write_report(evaluation, options.output_folder, oracle), end="")


def _labelled_folders(texts):
    """{label: folder} of the --estimates flags; a folder without a label is its own."""
    if not texts:
        raise UserError("--estimates: missing; give a folder of estimates, or label=folder")
    folders = {}
    for text in texts:
        label, equals, folder = text.partition("=")
        if not equals or os.path.isdir(text):  # a folder may have "=" in its name
            label = folder = text
        if label in folders:
            raise UserError(f"--estimates {text}: the label {label!r} is there twice; give it another one")
        folders[label] = folder
    return folders


def _oracle_label(labels, oracle):
    """The label in oracle order: `oracle`, or the first that has the word in it, or ""."""
    if oracle and oracle not in labels:
        raise UserError(f"--oracle {oracle}: no such label; should be one of {', '.join(labels)}")
    return oracle or next((label for label in labels if "oracle" in label.lower()), "")


if __name__ == "__main__":
    define_flags()
    run_script(main)
