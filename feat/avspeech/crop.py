"""Cuts the clips of a list out of videos: 25 frames/s, H.264 and AAC, named after video and face.

    python feat/avspeech/crop.py --list list.csv --video_folder videos --data_folder DATA

The list has rows of video, start, end, x, y, without a header: AVSpeech's, with ids of videos, or your own, with
paths of files. x, y are where the face is, as fractions; without them it is the largest face of the first frames.
A video that is not in the folder is fetched by a command of yours, in which {id} is what stands in the list and
{output} the mp4 to write:

    --downloader "yt-dlp -f mp4 -o {output} https://www.youtube.com/watch?v={id}"

What cannot be had is written to DATA/corrupt.csv with the reason, and the others go on. Clips that are there already
are left alone.
"""

import glob
import os
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass

from feat.base.script import run_script

from absl import flags

from feat.avspeech import boxes
from feat.avspeech.clips import (
    CLIP_END,
    FRAME_RATE,
    Problem,
    clip_stem,
    clip_stems,
    faces_path,
    read_list,
    say_problems,
    write_corrupt,
)
from feat.avspeech.video import read_frames, read_sound, video_info, write_video
from feat.base.files import UserError, make_writable_directory
from feat.base.parallel import parallel_map

STAGE = "crop"
END_TOLERANCE_S = 0.5  # that a segment may reach beyond the end of its video
EXTENSIONS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg")


@dataclass(frozen=True)
class Cropping:
    """How segments become clips."""

    data_folder: str
    video_folder: str
    downloader: str = ""
    keep_downloads: bool = False
    crf: int = 18
    preset: str = "veryfast"


def crop_list(path, cropping, first=0, last=None, num_workers=0):
    """Makes the clips of a list that are missing.

    Returns:
      The number of clips that are there now, and [Problem] of the others.

    Raises:
      UserError: the list cannot be read, or the folder not be written.
    """
    make_writable_directory(cropping.data_folder)
    segments, problems = read_list(path)
    stems = clip_stems(segments)  # of the whole list, as names of part of it could differ
    chosen, bad = read_list(path, first, last)
    jobs = [(cropping, segment, stems.get(segment)) for segment in chosen]
    found = parallel_map(crop_segment, jobs, num_workers, "clips")
    problems = bad + [problem for problem in found if problem]
    write_corrupt(cropping.data_folder, STAGE, problems)
    return len(found) - len(problems) + len(bad), problems


def crop_segment(job):
    """Makes the clip of (Cropping, Segment, stem) unless it is there. Gives None, or a Problem."""
    cropping, segment, stem = job
    try:
        if _is_there(cropping, segment, stem):
            return None
        source = find_video(cropping, segment)
        if source is not None:
            _crop(cropping, segment, stem, source)
            return None
        with tempfile.TemporaryDirectory(prefix=".download-", dir=cropping.data_folder) as folder:
            source = _download(cropping, segment, folder)
            if cropping.keep_downloads:
                source = shutil.move(source, os.path.join(cropping.video_folder, os.path.basename(source)))
            _crop(cropping, segment, stem, source)
        return None
    except UserError as error:
        reason = str(error).removeprefix(f"{cropping.video_folder}{os.sep}")
        return Problem(stem or segment.video, f"row {segment.row}: {reason}")


def find_video(cropping, segment):
    """Path of the video of a segment in the folder of videos; None if it is not there."""
    for folder in (cropping.video_folder, cropping.data_folder):
        stem = os.path.join(folder, segment.video)
        for path in (stem, *(stem + extension for extension in EXTENSIONS)):
            if os.path.isfile(path):
                return path
    return None


def _is_there(cropping, segment, stem):
    if stem is not None:
        return os.path.exists(os.path.join(cropping.data_folder, stem + ".mp4"))
    return bool(glob.glob(os.path.join(glob.escape(_unplaced(cropping, segment)) + f"_*_*{CLIP_END}.mp4")))


def _unplaced(cropping, segment):
    """Path of a clip whose face is yet to be found, as far as it is known."""
    name = clip_stem(segment.id, 0, 0, segment.start or 0).removesuffix(f"_0_0{CLIP_END}")
    return os.path.join(cropping.data_folder, name)


def _download(cropping, segment, folder):
    """Has the user's own command fetch a video into a folder; gives its path."""
    if not cropping.downloader:
        raise UserError(f"{segment.video}: not in {cropping.video_folder}; put it there, or give --downloader")
    output = os.path.join(folder, segment.video + ".mp4")
    os.makedirs(os.path.dirname(output), exist_ok=True)
    values = dict(id=segment.video, output=output, start=segment.start or 0, end=segment.end or "")
    try:
        command = [word.format(**values) for word in shlex.split(cropping.downloader)]
        done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"{segment.video}: the downloader cannot be run ({error})") from error
    if done.returncode or not os.path.isfile(output):
        said = (done.stderr.decode(errors="replace").strip().splitlines() or ["it wrote no file"])[-1]
        raise UserError(f"{segment.video}: not downloaded, status {done.returncode}: {said[-200:]}")
    return output


def _crop(cropping, segment, stem, source):
    info = video_info(source)
    start, end = segment.start or 0.0, segment.end if segment.end is not None else info.seconds
    if info.seconds and end > info.seconds + END_TOLERANCE_S:
        raise UserError(f"{source}: the segment is {start:g} to {end:g} s, the video ends at {info.seconds:.2f} s")
    if not info.has_sound:
        raise UserError(f"{source}: has no sound")
    if stem is None:
        point = boxes.largest_face(read_frames(source, start, min(end, start + 1)))
        if point is None:
            raise UserError(f"{source}: no face in the first second; give x and y in the list")
        stem = f"{os.path.basename(_unplaced(cropping, segment))}_{int(1e4 * point[0])}_{int(1e4 * point[1])}{CLIP_END}"
    sound, rate = read_sound(source, start, end)
    path = os.path.join(cropping.data_folder, stem + ".mp4")
    if os.path.exists(faces_path(source)):
        boxes.write_boxes(faces_path(path), boxes.shifted(boxes.read_boxes(faces_path(source)), start, end))
    write_video(path, read_frames(source, start, end, threads=1), sound, rate, crf=cropping.crf,
                preset=cropping.preset, threads=1)  # fmt: skip


def define_flags():
    flags.DEFINE_string("list", None, "CSV without a header: video, start, end, x, y")
    flags.DEFINE_string("data_folder", "faces", "folder to write clips to")
    flags.DEFINE_string("video_folder", None, "folder of the videos; default: where the list is")
    flags.DEFINE_string("downloader", "", "command that fetches a video: {id} is its id, {output} the mp4 to write")
    flags.DEFINE_bool("keep_downloads", False, "keep whole videos, in the folder of the videos")
    flags.DEFINE_integer("start", 0, "first row of the list, counted from 0", lower_bound=0)
    flags.DEFINE_integer("end", None, "row before which to stop; default: all")
    flags.DEFINE_integer("crf", 18, "of x264: lower is better and larger", lower_bound=0, upper_bound=51)
    flags.DEFINE_string("preset", "veryfast", "of x264")
    flags.DEFINE_integer("num_workers", 0, "processes; 0: one for every core", lower_bound=0)


def main(_):
    values = flags.FLAGS
    if not values.list:
        raise UserError("--list is missing; see the examples in --help")
    cropping = Cropping(
        values.data_folder,
        values.video_folder if values.video_folder is not None else os.path.dirname(values.list) or ".",
        values.downloader,
        values.keep_downloads,
        values.crf,
        values.preset,
    )
    count, problems = crop_list(values.list, cropping, values.start, values.end, values.num_workers)
    say_problems(problems)
    print(f"{values.data_folder}: {count} clips at {FRAME_RATE} frames/s, {len(problems)} left out")
    if problems and not count:
        raise UserError(f"{values.list}: no clip could be made; the reasons are in {values.data_folder}/corrupt.csv")


if __name__ == "__main__":
    define_flags()
    run_script(main)
