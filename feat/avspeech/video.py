"""Videos through PyAV: frames in time, the sound beside them, and writing both.

Times are seconds after the first picture, for sound too.
"""

import contextlib
import os
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from feat.avspeech.clips import FRAME_RATE
from feat.base.files import UserError, atomic_path
from feat.signals.audio import resample

RATE_TOLERANCE = 0.01  # frames/s


class VideoInfo(NamedTuple):
    """What a video says of itself."""

    width: int
    height: int
    frame_rate: float  # frames/s
    seconds: float  # of the pictures
    has_sound: bool


def _av():
    try:
        import av
    except ImportError as error:
        raise UserError('PyAV reads videos and is not installed; get it with: pip install -e ".[video]"') from error
    av.logging.set_level(None)
    return av


@contextlib.contextmanager
def _opened(path, kind="video"):
    """Yields an open container and its first stream of a kind. Raises UserError naming the file."""
    av = _av()
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; check the path")
    try:
        with av.open(path, metadata_errors="replace") as container:
            streams = getattr(container.streams, kind)
            if not streams:
                raise UserError(f"{path}: has no {'picture' if kind == 'video' else 'sound'}")
            if streams[0].codec_context is None:
                raise UserError(f"{path}: is in a format that PyAV cannot decode; convert it, e.g. to H.264 and AAC")
            yield container, streams[0]
    except av.FFmpegError as error:
        raise UserError(f"{path}: broken or no video ({error.strerror}); make it again") from error


def video_info(path):
    """VideoInfo of a file, from its header.

    Raises:
      UserError: it cannot be read, or has no pictures.
    """
    with _opened(path) as (container, stream):
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        if stream.duration:
            seconds = float(stream.duration * stream.time_base)
        else:
            seconds = (container.duration or 0) / 1e6
        size = stream.codec_context
        return VideoInfo(size.width, size.height, rate, seconds, bool(container.streams.audio))


def read_frames(path, start=0.0, end=None, frame_rate=FRAME_RATE, threads=0):
    """Frames of a video, decoded once and one at a time.

    Frame n is the picture that is shown at start + n / frame_rate, whatever rate the video has.

    Args:
      path: a video.
      start, end: seconds; None: to its end.
      frame_rate: frames/s of what comes out.
      threads: of the decoder; 0 lets it choose.

    Yields:
      uint8 [height, width, 3], RGB.

    Raises:
      UserError: it cannot be read, or breaks off.
    """
    with _opened(path) as (container, stream):
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = threads
        step = 1 / frame_rate
        origin = float((stream.start_time or 0) * stream.time_base)
        if start > 1:
            container.seek(round((start + origin) / stream.time_base), stream=stream)
        promised = float(stream.duration * stream.time_base) if stream.duration else None
        shown, count, seen, stopped = None, 0, None, False
        for frame in container.decode(stream):
            if frame.pts is None:
                continue
            seen = float(frame.pts * stream.time_base) - origin
            # Half a step early, so that rounding of time stamps does not move a picture.
            while shown is not None and seen > start + count * step + step / 2:
                if end is not None and start + count * step > end - step / 2:
                    stopped = True
                    break
                yield shown
                count += 1
            if stopped or (end is not None and seen > end):
                stopped = True
                break
            shown = frame.to_ndarray(format="rgb24")
        if shown is None:
            raise UserError(f"{path}: holds no picture{f' after {start:g} s' if start else ''}; make it again")
        length = 1 / float(stream.average_rate or frame_rate)
        if promised and not stopped and seen + length < promised - max(0.1, 2 * length):
            raise UserError(f"{path}: truncated, {seen + length:.2f} of {promised:.2f} s can be read; make it again")
        last = seen + length if end is None else min(end, seen + length)
        while not stopped and start + count * step < last - step / 2:
            yield shown
            count += 1


def read_sound(path, start=0.0, end=None):
    """Sound of a video.

    Args:
      path: a video.
      start, end: seconds; None: to its end.

    Returns:
      float32 [samples, channels], and its rate in Hz. Where the file has none, there are zeros.

    Raises:
      UserError: it cannot be read, or has no sound.
    """
    av = _av()
    origin = _origin(path)
    with _opened(path, "audio") as (container, stream):
        rate, channels = stream.rate, stream.channels
        if start > 1:
            container.seek(round((start + origin - 0.5) / stream.time_base), stream=stream)
        planar = av.AudioResampler(format="fltp")
        blocks, total = [], 0
        for frame in container.decode(stream):
            if frame.pts is None:
                continue
            place = round((float(frame.pts * frame.time_base) - origin - start) * rate)
            if end is not None and place >= (end - start) * rate:
                break
            for piece in planar.resample(frame):
                samples = piece.to_ndarray()  # [channels, samples]
                if place + samples.shape[1] > 0:
                    blocks.append((place, samples))
                    total = max(total, place + samples.shape[1])
                place += samples.shape[1]
    if end is not None:
        total = min(total, round((end - start) * rate))
    sound = np.zeros((total, channels), np.float32)
    for place, samples in blocks:
        first = max(0, -place)
        piece = samples[:, first : max(first, total - place)].T
        sound[place + first : place + first + len(piece)] = piece
    return sound, rate


def read_mono_sound(path, sample_rate, start=0.0, end=None):
    """`read_sound` as the mean of all channels: float32 [samples] at `sample_rate` Hz."""
    sound, rate = read_sound(path, start, end)
    return resample(sound.mean(axis=1), rate, sample_rate)


def write_video(path, frames, sound=None, sample_rate=None, *, frame_rate=FRAME_RATE, crf=18, preset="veryfast",
                keyframes=250, threads=0):  # fmt: skip
    """Writes an mp4 (H.264 and AAC of 128 kb/s), whole or not at all.

    Args:
      path: of the mp4.
      frames: yields uint8 [height, width, 3], RGB, of one size; an odd row or column is dropped.
      sound: [samples] or [samples, channels], floats, full scale 1; None: silent film.
      sample_rate: Hz of the sound.
      frame_rate: frames/s.
      crf, preset: of x264.
      keyframes: frames from one picture that stands alone to the next.
      threads: of the encoder; 0 lets it choose.

    Returns:
      The number of frames.
    """
    av = _av()
    step = Fraction(1, frame_rate)
    with atomic_path(path) as temporary:
        with av.open(temporary, "w", format="mp4") as container:
            options = {"crf": str(crf), "preset": preset, "g": str(keyframes)}
            video = container.add_stream("libx264", rate=frame_rate, options=options)
            video.pix_fmt = "yuv420p"
            video.codec_context.thread_count = threads
            audio, written, count = None, 0, 0
            if sound is not None:
                sound = np.asarray(sound, np.float32)
                sound = sound[:, None] if sound.ndim == 1 else sound
                layout = "mono" if sound.shape[1] == 1 else "stereo"
                sound = np.ascontiguousarray(sound[:, :2].T)  # [channels, samples]
                audio = container.add_stream("aac", rate=sample_rate, layout=layout)
                audio.bit_rate = 128000

            def write_sound(end):
                nonlocal written
                piece = sound[:, written:end]
                if piece.shape[1]:
                    block = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece), format="fltp", layout=layout)
                    block.sample_rate, block.time_base, block.pts = sample_rate, Fraction(1, sample_rate), written
                    container.mux(audio.encode(block))
                    written += piece.shape[1]

            for frame in frames:
                height, width = frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2
                if not count:
                    video.width, video.height = width, height
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
                picture.pts, picture.time_base = count, step
                container.mux(video.encode(picture))
                count += 1
                if audio is not None:
                    write_sound(round(count * sample_rate / frame_rate))
            if audio is not None:
                write_sound(sound.shape[1])
                container.mux(audio.encode(None))
            if count:
                container.mux(video.encode(None))
    return count


def _origin(path):
    """Time stamp of the first picture in s, as read; 0 where there are no pictures."""
    with _opened(path) as (_, stream):
        return float((stream.start_time or 0) * stream.time_base)
