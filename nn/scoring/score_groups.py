"""Scores of nn/evaluate.py by groups: who talks against whom, and how loud the talker is in the mixture.

A group is of talkers in mixtures, not of mixtures: in one of a man and a woman, he is "male against female" and 2 dB
louder, she the other way round.
"""

import sys

import numpy as np

from feat.base.files import UserError
from feat.corpora.talkers import GenderTable, gender_labels, talkers_of_mixture

MIXTURE_STEP_DB = 5.0  # width of the groups by SI-SDR of the mixture
TITLES = {
    "genders": "By who talks against whom",
    "mixture": f"By the talker's SI-SDR in the mixture, to the nearest {MIXTURE_STEP_DB:g} dB",
}


def label_talkers(names, talkers, mixture_si_sdr=None, genders=None):
    """Groups of every talker.

    Args:
        names: of the mixtures.
        talkers: that are scored in each.
        mixture_si_sdr: [mixtures, talkers] dB, or None.
        genders: {talker: "male" or "female"}, or None. A GenderTable of these mixtures, in place of talkers, has their
            groups as they stand; of one that names nobody there is no table, which is said once.

    Returns:
        {one of TITLES: [[label of a talker] of a mixture]}

    Raises:
        UserError: `genders` are given, and a name does not tell its talkers, or they are of no talkers at all.
    """
    labels = {}
    groups = genders.second if isinstance(genders, GenderTable) else {}
    if any(name in groups for name in names):
        labels["genders"] = [[groups.get(name, "unknown")] * talkers for name in names]
    elif genders is not None:
        found = {talker: "" for name in names for talker in talkers_of_mixture(name, talkers)}
        if found.keys() & genders.keys():
            labels["genders"] = [gender_labels(name, talkers, genders) for name in names]
        elif isinstance(genders, GenderTable) and not genders:
            raise UserError(
                f"{genders.path}: no line has a talker, then M or F, or a mixture such as {names[0]}; give a table such"
                " as LibriSpeech's SPEAKERS.TXT"
            )
        elif isinstance(genders, GenderTable) and not genders.useless:
            genders.useless = True
            print(
                f"{genders.path}: names none of the talkers, such as {next(iter(found))}, nor the mixtures, such as"
                f" {names[0]}; no table of who talks against whom",
                file=sys.stderr,
                flush=True,
            )
    if mixture_si_sdr is not None:
        nearest = MIXTURE_STEP_DB * np.round(np.asarray(mixture_si_sdr) / MIXTURE_STEP_DB)
        labels["mixture"] = [[f"{value + 0:g} dB" if value == value else "silent" for value in row] for row in nearest]
    return labels


def group_means(labels, columns):
    """Means of groups.

    Args:
        labels: [[label of a talker] of a mixture].
        columns: {system: {metric: [mixtures, talkers]}}.

    Returns:
        [{"group", "talkers": how many, "systems": {system: {metric: mean, None if none is defined}}}], in the order
        of numbers or letters.
    """
    flat = np.array([label for row in labels for label in row])
    groups = []
    for label in sorted(set(flat), key=_order):
        inside = flat == label
        systems = {
            system: {metric: mean(np.ravel(values)[inside]) for metric, values in metrics.items()}
            for system, metrics in columns.items()
        }
        groups.append({"group": str(label), "talkers": int(inside.sum()), "systems": systems})
    return groups


def mean(values):
    """Mean of the values that are defined, None if there is none."""
    defined = values[~np.isnan(values)]
    # The last bits depend on the number of threads.
    return round(float(defined.mean()), 6) if defined.size else None


def _order(label):
    number = label.removesuffix(" dB")
    return (0, float(number), "") if number != label else (1, 0.0, label)
