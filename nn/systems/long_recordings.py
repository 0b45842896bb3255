"""Measures how well long recordings are separated, and how much memory they take.

Dialogues are scripted from the talkers of the tt list: scenes in which both talk, with silence between the scenes. Each
dialogue is separated as one file, and also scene by scene with the best permutation for every scene. Compared are the
SI-SDRi of both, and the share of scenes whose talkers come out in the channels that they have in the whole file. Then
files of one minute and of --minutes are separated, each in a process of its own, whose peak memory counts.
"""

import os
import subprocess
import sys
import tempfile

import numpy as np
from absl import flags

from feat.base.files import UserError
from feat.corpora.lists import parts_of_name, read_names, talker_of
from feat.signals.audio import read_mono, write_pcm16
from models.losses import permutations
from nn.scoring.metrics import si_sdr
from nn.systems.separator import Separator

FLAGS = flags.FLAGS
LEVEL = 0.05  # root mean square of every utterance
PAUSE_SECONDS = 0.6  # between scenes


def utterances_by_talker(settings, names):
    """{talker: [path of an utterance]} of a list of mixtures."""
    found = {}
    for name in names:
        for part, path in zip(parts_of_name(name, settings.talkers), settings.wav_paths("tt", name)):
            found.setdefault(talker_of(part), {}).setdefault(part, path)
    return {talker: list(paths.values()) for talker, paths in found.items()}


def dialogue(settings, utterances, talkers, scenes, seed):
    """[talkers, samples] of the sources and [(first, last sample)] of the scenes."""
    random = np.random.default_rng(seed)
    pause = np.zeros((len(talkers), int(PAUSE_SECONDS * settings.sample_rate)), np.float32)
    parts, places, length = [], [], 0
    for _ in range(scenes):
        voices = []
        for talker in talkers:
            paths = utterances[talker]
            voice = [read_mono(paths[i], settings.sample_rate) for i in random.integers(len(paths), size=2)]
            voices.append(np.concatenate([LEVEL * x / max(np.sqrt(np.mean(np.square(x))), 1e-6) for x in voice]))
        shortest = min(map(len, voices))
        parts += [np.stack([voice[:shortest] for voice in voices]), pause]
        places.append((length, length + shortest))
        length += shortest + pause.shape[1]
    return np.concatenate(parts, axis=1), places


def best_scores(estimates, sources, mixture):
    """(SI-SDRi in dB of every permutation, mean over talkers; index of the best)."""
    before = np.mean(si_sdr(np.tile(mixture, (len(sources), 1)), sources))
    pairwise = si_sdr(estimates, sources, pairwise=True)  # [source, estimate]
    orders = permutations(len(sources))
    scores = [np.mean(pairwise[np.arange(len(sources)), order]) - before for order in orders]
    return np.array(scores), int(np.argmax(scores))


def compare(separator, settings, utterances):
    """[(SI-SDRi of the whole file, of scenes alone, share of scenes in their channels)] of dialogues."""
    talkers = sorted(utterances)
    random = np.random.default_rng(0)
    rows = []
    for i in range(FLAGS.dialogues):
        pair = random.choice(talkers, settings.talkers, replace=False)
        sources, places = dialogue(settings, utterances, pair, FLAGS.scenes, i)
        mixture = sources.sum(axis=0)
        whole = separator(mixture, settings.sample_rate)
        _, best = best_scores(whole, sources, mixture)
        in_file, alone, right = [], [], 0
        for first, last in places:
            scene, heard = sources[:, first:last], mixture[first:last]
            scores, own = best_scores(whole[:, first:last], scene, heard)
            in_file.append(scores[best])
            right += own == best
            alone.append(np.max(best_scores(separator(heard, settings.sample_rate), scene, heard)[0]))
        rows.append((np.mean(in_file), np.mean(alone), right / len(places)))
        print(
            f"{' and '.join(pair)}: {len(mixture) / settings.sample_rate:.0f} s, SI-SDRi {rows[-1][0]:.2f} dB in the"
            f" file, {rows[-1][1]:.2f} dB scene by scene, {100 * rows[-1][2]:.0f} % of the scenes in their channels",
            flush=True,
        )
    return np.mean(rows, axis=0)


def memory_mib(settings, mixture, minutes, folder):
    """Peak of a process that separates so many minutes, MiB."""
    path = os.path.join(folder, f"{minutes:g}.wav")
    write_pcm16(path, np.resize(mixture, int(60 * minutes * settings.sample_rate)), settings.sample_rate)
    script = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "separate.py")
    command = [sys.executable, script, f"--resume_model={FLAGS.resume_model}", f"--output_dir={folder}/out", path]
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=2);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
    )
    return float(subprocess.run([sys.executable, "-c", code, *command], check=True, stdout=subprocess.PIPE).stdout)


def measure(settings):
    """{name: number}: quality of long recordings and of their scenes alone, and the memory that files take."""
    if not FLAGS.resume_model:
        raise UserError("--measure long needs trained checkpoints: --resume_model exp/deep_casa/models")
    utterances = utterances_by_talker(settings, read_names(FLAGS.wav_list_folder, "tt", settings.talkers))
    separator = Separator(FLAGS.resume_model)
    in_file, alone, right = compare(separator, settings, utterances)
    sources, _ = dialogue(settings, utterances, sorted(utterances)[: settings.talkers], 5, 0)
    with tempfile.TemporaryDirectory() as folder:
        short, long = (memory_mib(settings, sources.sum(axis=0), minutes, folder) for minutes in (1, FLAGS.minutes))
    return {
        "si_sdri_in_one_file_db": float(in_file),
        "si_sdri_scene_by_scene_db": float(alone),
        "scenes_in_their_channels": float(right),
        "memory_of_1_minute_mib": short,
        f"memory_of_{FLAGS.minutes:g}_minutes_mib": long,
    }


def define_flags():
    """Flags of `measure`, besides --resume_model and those of the mixtures."""
    flags.DEFINE_integer("dialogues", 8, "--measure long: pairs of talkers", lower_bound=1)
    flags.DEFINE_integer("scenes", 12, "--measure long: scenes of a dialogue", lower_bound=1)
    flags.DEFINE_float("minutes", 30.0, "--measure long: length of the long file", lower_bound=0.1)
