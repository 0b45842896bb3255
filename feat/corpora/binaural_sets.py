"""Where the wavs of a set of binaural mixtures lie, what its manifest says, and whose talkers it has."""

import csv
import json
import os

from feat.base.files import UserError
from feat.corpora.find import find_utterances
from feat.corpora.lists import SETS, rate_folder

NOISE_SIGNALS = ("mix_clean", "mix_single", "mix_both")  # of sets with noise; the last is the mixture
PUBLISHED_ROOT = "wsj0"  # paths of the published lists start with it
PUBLISHED_TRAINING = "wsj0/si_tr_s/"  # here lie tr and cv of the published lists
SHORTEST = 1040  # samples of a mixture; networks need as many


def set_folder(output_folder, kind, set_name, sample_rate=8000, mode="min"):
    """Folder of mix/, s1/ and so on of a set; `kind`: 2speakers, 3speakers, noise or reverb."""
    return os.path.join(output_folder, kind, rate_folder(sample_rate), mode, set_name)


def read_manifest(folder):
    """Rows of the manifest of a set's folder, [{name: text}]. Raises UserError if the set was not made to its end."""
    path = os.path.join(folder, "manifest.csv")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; run feat/binaural_mix.py to its end") from error


def divide_talkers(corpus_folder, seed):
    """{set: {talker: [path]}} of a corpus as feat/binaural_mix.py divides it, see feat.corpora.find.find_utterances."""
    return find_utterances(corpus_folder, seed, dict(zip(SETS, (0.8, 0.1, 0.1))))


def training_talkers(corpus_folder, held_out, default_seed=0):
    """The talkers of a corpus that may be trained on.

    Where the sets were drawn here they are those of tr, divided as then. Otherwise, as of the published lists, they
    are all but those that the manifests of the sets name; published lists have cv's talkers in tr too, of these
    the utterances of cv are left out. What is left out is said. Without manifests they are divided by the default seed.

    Args:
      corpus_folder: see feat.corpora.find.find_utterances.
      held_out: folders of the sets cv and tt, see `set_folder`.
      default_seed: of the division, where the sets do not tell theirs.

    Returns:
      ({talker: [path]}, the seed of the sets).

    Raises:
      UserError: talkers that were drawn for tr are in these sets, which are of another corpus, or of what this one
        was before; all talkers are in these sets; or there are talkers in the folder of another.
    """
    settings = _settings(held_out[0])
    seed = settings.get("seed", default_seed)
    sources_of = {folder: _sources_of_manifest(folder) for folder in held_out}
    if "corpus_root" not in settings and any(sources_of.values()):
        return _all_but(corpus_folder, sources_of, seed), seed
    utterances = divide_talkers(corpus_folder, seed)["tr"]
    for folder, sources in sources_of.items():
        heard = set(map(_talker, sources))
        known = next((talker for talker in utterances if talker in heard), None)
        if known is not None:
            raise UserError(
                f"{folder}: talker {known} of it would be trained on too; make the sets cv and tt again from"
                f" {corpus_folder}, with feat/binaural_mix.py"
            )
    return utterances, seed


def _all_but(corpus_folder, sources_of, seed):
    """{talker: [path]} of a whole corpus without what is in sets, {folder: paths of the manifest}."""
    whole = find_utterances(corpus_folder, seed, dict(zip(SETS, (1, 0, 0))))["tr"]
    talkers, talker_of = set(), {}
    for folder, sources in sources_of.items():
        talker_of |= {_utterance(path): _talker(path) for path in sources}
        closed = os.path.basename(folder) == "cv"
        talkers |= {_talker(path) for path in sources if not (closed and path.startswith(PUBLISHED_TRAINING))}
    for talker, paths in whole.items():
        inner = {talker_of.get(_utterance(path), talker) for path in paths} - {talker}
        if inner:
            raise UserError(
                f"{os.path.join(corpus_folder, talker)}: not the folder of one talker, {min(inner)} is in it;"
                " give the folder that holds the talkers', such as wsj0/si_tr_s"
            )
    kept = {talker: paths for talker, paths in whole.items() if talker not in talkers}
    if not kept:
        raise UserError(f"{corpus_folder}: all talkers are in cv or tt; give those of training, such as wsj0/si_tr_s")
    fresh = {talker: [path for path in paths if _utterance(path) not in talker_of] for talker, paths in kept.items()}
    fresh = {talker: paths for talker, paths in fresh.items() if paths}
    utterances = sum(map(len, kept.values())) - sum(map(len, fresh.values()))
    if utterances or len(kept) < len(whole):
        print(
            f"{corpus_folder}: left out {len(whole) - len(kept)} of {len(whole)} talkers and {utterances} utterances of"
            " the others, which are in cv or tt"
        )
    return fresh


def _settings(folder):
    """What a set was made with, {name: value}; nothing if that is not told."""
    try:
        with open(os.path.join(folder, *[os.pardir] * 3, "settings.json"), encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return {}


def _sources_of_manifest(folder):
    """Paths of the utterances that the manifest of a set names, a set; empty if there is no manifest."""
    if not os.path.exists(os.path.join(folder, "manifest.csv")):
        return set()
    columns = [f"s{c}_source" for c in range(1, 10)]
    return {row[column] for row in read_manifest(folder) for column in columns if column in row}


def _talker(path):
    """Talker of an utterance of a manifest, named as feat.corpora.find.find_utterances names talkers."""
    parts = path.split("/")
    if parts[0] == PUBLISHED_ROOT:  # wsj0/si_tr_s/011/x.wav
        return parts[-2]
    return parts[1] if parts[0] in SETS else parts[0]


def _utterance(path):
    """011/x of wsj0/si_tr_s/011/x.wav: the same wherever the corpus begins."""
    return "/".join(os.path.splitext(path)[0].split("/")[-2:])
