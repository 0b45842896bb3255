"""Makes pieces of noise for mixtures: the first 3 s of recordings, 16 kHz, 16 bit, turned down to 0.2.

    python feat/avspeech/noise.py --recordings FOLDER --data_folder DATA
    python feat/avspeech/mix.py --data_folder DATA --noise_folder DATA/noise

FOLDER holds sounds or videos, such as those of AudioSet. With --list, AudioSet's own table of clips (id, start, end,
labels), those are cut out of FOLDER/<id>.*, or of what a command of yours fetches, in which {id} is the video's id and
{output} the file to write. Recordings that cannot be had are named, and the others go on; those that are there are
left alone.
"""

import os
import shlex
import subprocess
import tempfile

from feat.base.script import run_script

import numpy as np
from absl import flags

from feat.avspeech.clips import PART_SAMPLES, PART_SECONDS, SAMPLE_RATE, Problem, say_problems, write_corrupt
from feat.avspeech.video import read_mono_sound
from feat.base.files import UserError, make_writable_directory
from feat.base.parallel import parallel_map
from feat.signals.audio import read_blocks, resample, wav_info, write_pcm16

STAGE = "noise"
NOISE = "noise"
GAIN = 0.2
SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
VIDEOS = (".mp4", ".mkv", ".webm", ".m4a", ".mov")


def read_clips(path):
    """[(id, start, end)] of AudioSet's table; lines that start with # are comments."""
    try:
        with open(path, encoding="utf-8") as file:
            rows = [line.split(",") for line in file if line.strip() and not line.startswith("#")]
        return [(row[0].strip(), float(row[1]), float(row[2])) for row in rows]
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"{path}: not a table of id, start, end ({error}); check the path") from error


def make_noise(job):
    """Writes a piece of noise of (source, start, output, gain, downloader) unless it is there; None or Problem."""
    source, start, output, gain, downloader = job
    name = os.path.splitext(os.path.basename(output))[0]
    if os.path.exists(output):
        return None
    try:
        with tempfile.TemporaryDirectory() as folder:
            if not os.path.splitext(source)[1]:
                source = _found(source) or _downloaded(source, downloader, folder)
            sound = _sound(source, start)
        if not sound.any():
            raise UserError(f"{source}: is silent")
    except UserError as error:
        return Problem(name, str(error))
    write_pcm16(output, gain * np.clip(sound, -1, 1), SAMPLE_RATE)
    return None


def _found(stem):
    return next((stem + end for end in SOUNDS + VIDEOS if os.path.isfile(stem + end)), None)


def _downloaded(stem, downloader, folder):
    video_id = os.path.basename(stem)
    if not downloader:
        raise UserError(f"{video_id}: not in {os.path.dirname(stem)}; put it there, or give --downloader")
    output = os.path.join(folder, video_id + ".m4a")
    command = [word.format(id=video_id, output=output) for word in shlex.split(downloader)]
    try:
        done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise UserError(f"{video_id}: the downloader cannot be run ({error})") from error
    if done.returncode or not os.path.isfile(output):
        raise UserError(f"{video_id}: not downloaded, status {done.returncode}")
    return output


def _sound(path, start):
    """The first 3 s from `start` s on, mono at 16 kHz, float32 [samples]."""
    if path.lower().endswith(SOUNDS):
        rate = wav_info(path).sample_rate
        parts, wanted = [], int((start + PART_SECONDS + 0.1) * rate)
        for block in read_blocks(path):
            parts.append(block)
            if sum(map(len, parts)) >= wanted:
                break
        sound = resample(np.concatenate(parts)[int(start * rate) : wanted], rate, SAMPLE_RATE)
    else:
        sound = read_mono_sound(path, SAMPLE_RATE, start, start + PART_SECONDS)
    return sound[:PART_SAMPLES]


def define_flags():
    flags.DEFINE_string("recordings", None, "folder of recordings")
    flags.DEFINE_string("list", None, "AudioSet's table of clips; default: all recordings of the folder")
    flags.DEFINE_string("data_folder", "faces", "the pieces go to noise/ in it")
    flags.DEFINE_float("gain", GAIN, "factor of the amplitude", lower_bound=0, upper_bound=1)
    flags.DEFINE_string("downloader", "", "command that fetches a video: {id} is its id, {output} the file to write")
    flags.DEFINE_integer("num_workers", 0, "processes; 0: one for every core", lower_bound=0)


def main(_):
    values = flags.FLAGS
    if not values.recordings:
        raise UserError("--recordings is missing: a folder of sounds or videos")
    folder = os.path.join(values.data_folder, NOISE)
    make_writable_directory(folder)
    if values.list:
        sources = [(os.path.join(values.recordings, name), start) for name, start, _ in read_clips(values.list)]
    elif os.path.isdir(values.recordings):
        names = sorted(name for name in os.listdir(values.recordings) if name.lower().endswith(SOUNDS + VIDEOS))
        sources = [(os.path.join(values.recordings, name), 0.0) for name in names]
    else:
        raise UserError(f"{values.recordings}: no such folder; check --recordings")
    jobs = []
    for source, start in sources:
        stem = os.path.splitext(os.path.basename(source))[0]
        jobs.append((source, start, os.path.join(folder, stem + ".wav"), values.gain, values.downloader))
    problems = [problem for problem in parallel_map(make_noise, jobs, values.num_workers, "noise") if problem]
    write_corrupt(values.data_folder, STAGE, problems)
    say_problems(problems)
    print(f"{folder}: {len(jobs) - len(problems)} pieces of noise, {len(problems)} left out")


if __name__ == "__main__":
    define_flags()
    run_script(main)
