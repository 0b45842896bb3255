"""Cuts the sound of every clip into pieces of 3 s: one channel, 16 kHz, 16 bit, without dither.

    python feat/avspeech/cut_audio.py --data_folder DATA

DATA/*_final.mp4 become DATA/audio/<clip>_part<k>.wav, as many as there are whole pieces in the pictures. Clips that
cannot be used are written to DATA/corrupt.csv with the reason, and the others go on; pieces that are there already
are left alone.
"""

import os

from feat.base.script import run_script

import numpy as np
from absl import flags

from feat.avspeech.clips import (
    AUDIO,
    FRAME_RATE,
    PART_FRAMES,
    PART_SAMPLES,
    PART_SECONDS,
    SAMPLE_RATE,
    Problem,
    audio_path,
    find_clips,
    say_problems,
    stem_of,
    write_corrupt,
)
from feat.avspeech.video import RATE_TOLERANCE, read_mono_sound, video_info
from feat.base.files import UserError, make_writable_directory, require_free_bytes
from feat.base.parallel import parallel_map
from feat.signals.audio import write_pcm16

STAGE = "audio"
MISSING_S = 0.1  # of a piece's end that may be without sound; zeros take its place


def cut_clips(data_folder, any_frame_rate=False, tolerance_s=0.5, num_workers=0):
    """Cuts the clips of a folder.

    Args:
      data_folder: see feat/avspeech/clips.py.
      any_frame_rate: take clips of other rates than 25 frames/s, whose frames are then chosen by their times.
      tolerance_s: by which sound may be longer than the pictures.
      num_workers: processes; 0 takes one for every core.

    Returns:
      The number of pieces that are there now, and [Problem].

    Raises:
      UserError: there are no clips, or the disk is too small.
    """
    clips = find_clips(data_folder)
    make_writable_directory(os.path.join(data_folder, AUDIO))
    require_free_bytes(data_folder, len(clips) * 2 * PART_SAMPLES, "the pieces")
    jobs = [(data_folder, clip, any_frame_rate, tolerance_s) for clip in clips]
    found = parallel_map(cut_clip, jobs, num_workers, "pieces of sound")
    problems = [problem for _, some in found for problem in some]
    write_corrupt(data_folder, STAGE, problems)
    return sum(count for count, _ in found), problems


def cut_clip(job):
    """Cuts a clip of (data folder, path, any frame rate, tolerance). Gives the number of pieces and [Problem]."""
    data_folder, path, any_frame_rate, tolerance_s = job
    stem = stem_of(path)
    try:
        info = video_info(path)
        if not any_frame_rate and abs(info.frame_rate - FRAME_RATE) > RATE_TOLERANCE:
            raise UserError(
                f"{info.frame_rate:.2f} frames/s, {FRAME_RATE} are needed; crop it again or give --any_frame_rate"
            )
        if not info.has_sound:
            raise UserError("has no sound")
        parts = round(info.seconds * FRAME_RATE) // PART_FRAMES
        if not parts:
            raise UserError(f"{info.seconds:.2f} s of pictures, {PART_SECONDS} s are needed")
        wanted = [k for k in range(parts) if not os.path.exists(audio_path(data_folder, stem, k))]
        if not wanted:
            return parts, []
        sound = read_mono_sound(path, SAMPLE_RATE)
        if len(sound) > (info.seconds + tolerance_s) * SAMPLE_RATE:
            raise UserError(f"{len(sound) / SAMPLE_RATE:.2f} s of sound, {info.seconds:.2f} s of pictures")
        if not np.isfinite(sound).all():
            raise UserError("its sound holds NaN or infinite samples")
    except UserError as error:
        return 0, [Problem(stem, str(error).removeprefix(f"{path}: "))]
    problems = []
    for k in wanted:
        piece = sound[k * PART_SAMPLES : (k + 1) * PART_SAMPLES]
        if len(piece) < PART_SAMPLES - MISSING_S * SAMPLE_RATE:
            problems.append(Problem(stem, f"the sound ends at {len(sound) / SAMPLE_RATE:.2f} s", k))
        elif not piece.any():
            problems.append(Problem(stem, "is silent", k))
        else:
            piece = np.clip(np.pad(piece, (0, PART_SAMPLES - len(piece))), -1, 1)
            write_pcm16(audio_path(data_folder, stem, k), piece, SAMPLE_RATE)
    return parts - len(problems), problems


def define_flags():
    flags.DEFINE_string("data_folder", "faces", "folder of the clips")
    flags.DEFINE_bool("any_frame_rate", False, "take clips of other rates than 25 frames/s, by the times of frames")
    flags.DEFINE_float("tolerance", 0.5, "seconds by which sound may be longer than the pictures", lower_bound=0)
    flags.DEFINE_integer("num_workers", 0, "processes; 0: one for every core", lower_bound=0)


def main(_):
    values = flags.FLAGS
    count, problems = cut_clips(values.data_folder, values.any_frame_rate, values.tolerance, values.num_workers)
    say_problems(problems)
    print(f"{os.path.join(values.data_folder, AUDIO)}: {count} pieces of {PART_SECONDS} s, {len(problems)} left out")


if __name__ == "__main__":
    define_flags()
    run_script(main)
