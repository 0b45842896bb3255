"""The built-in audio-visual corpus: drawn faces whose mouths follow the speech of the built-in voices.

    pip install -e .[corpus,video]
    python feat/avspeech/talking_faces.py --data_folder faces

makes

    faces/voices/...                   the talkers' speech at 16 kHz, see feat/voices.py
    faces/videos/<talker>.mp4          a video of every talker, 360x288, 25 frames/s, with the sound
    faces/videos/<talker>.faces.csv    where the face is in every frame
    faces/list.csv                     segments of 6 s: video, start, end, x, y
    faces/split.csv                    which talkers are for training, validation and test
    faces/conversation.mp4             two talkers for test who talk at once, one of whom leaves for a while

from which the stages crop, cut_audio, embed_faces and mix go on. No recording of anybody is needed. How wide a mouth
opens follows the loudness of every 40 ms, how broad it is their spectral brightness. Killed at any moment, the same
command goes on where it was; the same seed gives the same faces.
"""

import glob
import os
import random
import zlib
from dataclasses import dataclass

from feat.base.script import run_script

import numpy as np
from absl import flags

from feat.avspeech.boxes import read_boxes, write_boxes
from feat.avspeech.clips import FRAME_RATE, SAMPLE_RATE, faces_path
from feat.avspeech.video import write_video
from feat.base.files import write_text
from feat.base.parallel import parallel_map
from feat.corpora.lists import SETS, rate_folder
from feat.corpora.mixture_tree import claim_folder
from feat.corpora.voices import make_corpus
from feat.signals.audio import read_mono

WIDTH, HEIGHT = 360, 288  # pixels
SEGMENT_SECONDS = 6
TABLES = {"tr": "train", "cv": "val", "tt": "test"}
SHORTEST_UTTERANCES_S = 4.4  # mean length of an utterance, a low estimate
_DETAIL = 2  # the head is drawn this much larger and then reduced, which smooths its edges
_HEAD = (150, 190)  # pixels of the drawn head's picture in a video, hair included
_FACE = np.array([21, 24, 129, 176])  # what detectors call the face in it: x1, y1, x2, y2
_MOUTH = (75, 139)


@dataclass(frozen=True)
class Look:
    """A face. Colours are RGB; lengths in pixels of the head's picture."""

    skin: tuple
    hair: tuple
    lips: tuple
    eyes: tuple
    shirt: tuple
    wall: tuple
    face_width: float
    eye_distance: float
    eye_size: float
    brow: float
    nose: float
    fringe: float
    long_hair: bool
    mouth: float
    glasses: bool


@dataclass(frozen=True)
class _Job:
    """A video of one talker: which wavs it says, for how many segments, into which file."""

    talker: str
    sex: str
    wavs: tuple
    segments: int
    path: str
    seed: int


def draw_look(name, sex="m"):
    """The face of a talker, drawn from the name only.

    The ranges are those within which MTCNN takes nearly all drawings for faces.
    """
    rng = random.Random(f"look {name}")
    tone = rng.random()
    skin = tuple(int(light + tone * (dark - light) + rng.uniform(-8, 8)) for light, dark in
                 zip((238, 210, 190), (140, 108, 89)))  # fmt: skip
    hair = rng.choice([(40, 28, 20), (22, 20, 22), (94, 60, 34), (160, 120, 70), (120, 118, 116), (130, 58, 30)])
    lips = tuple(int(0.72 * a + 0.28 * b) for a, b in zip(skin, (170, 30, 50)))
    return Look(
        skin=skin,
        hair=hair,
        lips=lips,
        eyes=rng.choice([(70, 110, 140), (80, 56, 34), (50, 90, 60), (40, 34, 30)]),
        shirt=tuple(rng.randrange(30, 220) for _ in range(3)),
        wall=tuple(rng.randrange(70, 230) for _ in range(3)),
        face_width=rng.uniform(0.96, 1.07),
        eye_distance=rng.uniform(23.5, 27),
        eye_size=rng.uniform(6.5, 7.5),
        brow=rng.uniform(3.5, 4.5),
        nose=rng.uniform(20, 23.5),
        fringe=rng.uniform(38, 46),
        long_hair=rng.random() < (0.7 if sex == "f" else 0.1),
        mouth=rng.uniform(16, 21),
        glasses=rng.random() < 0.15,
    )


def mouth_of_sound(samples, sample_rate=SAMPLE_RATE):
    """How a mouth moves with speech.

    Args:
      samples: [samples], floats.
      sample_rate: Hz.

    Returns:
      opening, width: [frames] at 25 frames/s, both between 0 and 1: loudness over 30 dB below the loudest frames, and
      where the middle of the spectrum lies between 300 and 3000 Hz, on a logarithmic scale.
    """
    hop = sample_rate // FRAME_RATE
    frames = max(1, round(len(samples) * FRAME_RATE / sample_rate))
    blocks = np.resize(np.pad(samples, (0, max(0, frames * hop - len(samples)))), (frames, hop))
    power = np.abs(np.fft.rfft(blocks * np.hanning(hop))) ** 2
    frequency = np.fft.rfftfreq(hop, 1 / sample_rate)
    level_db = 10 * np.log10(np.maximum(power.sum(axis=1), 1e-10))
    opening = np.clip(1 + (level_db - np.percentile(level_db, 95)) / 30, 0, 1)
    centre_hz = (power @ frequency + 1e-6) / (power.sum(axis=1) + 1e-9)
    width = np.clip(np.log(np.maximum(centre_hz, 1) / 300) / np.log(10), 0, 1)
    # A closed mouth is neither broad nor narrow.
    return opening, np.where(opening > 0.05, width, 0.4)


class Head:
    """Draws a face at any place, size, tilt and mouth."""

    def __init__(self, look):
        self.look = look
        drawn = {eyes_open: self._draw(eyes_open) for eyes_open in (True, False)}
        self.images = {eyes_open: image.convert("RGB") for eyes_open, image in drawn.items()}
        self.opacity = drawn[True].getchannel("A")

    def _draw(self, eyes_open):
        from PIL import Image, ImageDraw

        look, z = self.look, _DETAIL
        image = Image.new("RGBA", (_HEAD[0] * z, _HEAD[1] * z), (*look.skin, 0))
        draw = ImageDraw.Draw(image)
        dark = tuple(int(0.78 * c) for c in look.skin)
        pale = tuple(int(c + 0.25 * (255 - c)) for c in look.skin)
        half = 50 * look.face_width

        def ellipse(x, y, rx, ry, fill):
            draw.ellipse([z * (x - rx), z * (y - ry), z * (x + rx), z * (y + ry)], fill=(*fill, 255))

        if look.long_hair:
            ellipse(75, 88, half + 14, 84, look.hair)
        else:
            ellipse(75, 72, half + 8, 66, look.hair)
        draw.rectangle([z * 55, z * 150, z * 95, z * 190], fill=(*dark, 255))
        ellipse(75 - half, 103, 8, 14, dark)
        ellipse(75 + half, 103, 8, 14, dark)
        ellipse(75, 100, half, 74, look.skin)
        ellipse(75, 62, 0.7 * half, 26, tuple((a + b) // 2 for a, b in zip(look.skin, pale)))
        draw.pieslice([z * (75 - half), z * 26, z * (75 + half), z * 2 * look.fringe], 180, 360,
                      fill=(*look.hair, 255))  # fmt: skip
        for side in (-1, 1):
            x = 75 + side * look.eye_distance
            ellipse(x, 95, look.eye_size + 5, look.eye_size + 2, dark)
            if eyes_open:
                ellipse(x, 96, look.eye_size + 2, 0.66 * look.eye_size, (245, 243, 240))
                ellipse(x, 96, 0.6 * look.eye_size, 0.6 * look.eye_size, look.eyes)
                ellipse(x, 96, 0.3 * look.eye_size, 0.3 * look.eye_size, (12, 12, 14))
            else:
                ellipse(x, 97, look.eye_size + 2, 1.3, look.hair)
            draw.line([z * (x - 12), z * (83 + side), z * (x + 12), z * (83 - side)], fill=(*look.hair, 255),
                      width=int(z * look.brow))  # fmt: skip
            ellipse(x + side * 7, 122, 11, 9, tuple(int(0.9 * c + 0.1 * d) for c, d in zip(look.skin, (220, 90, 80))))
            if look.glasses:
                draw.ellipse([z * (x - 16), z * 82, z * (x + 16), z * 110], outline=(30, 30, 34, 255), width=2 * z)
        draw.polygon([(z * 75, z * 92), (z * (75 - 8), z * (99 + look.nose)), (z * (75 + 9), z * (99 + look.nose))],
                     fill=(*dark, 255))  # fmt: skip
        ellipse(75, 98 + look.nose, 9, 5, dark)
        ellipse(73, 96 + look.nose, 5, 4, pale)
        return image

    def paint(self, frame, x, y, scale, tilt, opening, width, eyes_open=True):
        """Paints the face onto `frame`, a PIL image.

        Args:
          x, y: centre of the head's picture, in pixels of the frame.
          scale: 1 makes a face 108 pixels broad.
          tilt: radians.
          opening, width: of the mouth, 0 to 1.

        Returns:
          x1, y1, x2, y2 of the face.
        """
        from PIL import Image, ImageDraw

        look, z = self.look, _DETAIL
        image = self.images[eyes_open].copy()
        draw = ImageDraw.Draw(image)
        mx, my = _MOUTH
        half = look.mouth * (0.72 + 0.5 * width)
        gap = 15 * opening
        lip = 4.2 - 0.8 * width

        def ellipse(ry_up, ry_down, rx, fill):
            draw.pieslice([z * (mx - rx), z * (my - ry_up), z * (mx + rx), z * (my + ry_up)], 180, 360, fill=fill)
            draw.pieslice([z * (mx - rx), z * (my - ry_down), z * (mx + rx), z * (my + ry_down)], 0, 180, fill=fill)

        ellipse(gap * 0.45 + lip, gap + lip, half + 2, look.lips)
        if gap > 0.8:
            ellipse(gap * 0.45, gap, half - 1, (52, 14, 18))
            if gap > 3:
                rx = 0.72 * half
                draw.rectangle([z * (mx - rx), z * (my - 0.4 * gap), z * (mx + rx), z * (my - 0.4 * gap + 3.2)],
                               fill=(238, 234, 224))  # fmt: skip
        else:
            draw.line([z * (mx - half), z * my, z * (mx + half), z * my], fill=(70, 24, 26), width=z)

        # The part of the frame that a tilt of 0.1 can reach, and where its corner comes from: the inverse of scaling
        # and turning about the middle. Colour and opacity go separately, which saves two conversions.
        reach = np.ceil(scale * np.array([_HEAD[0] + 0.1 * _HEAD[1], _HEAD[1] + 0.1 * _HEAD[0]]) / 2).astype(int)
        left, top = int(x) - reach[0], int(y) - reach[1]
        cos, sin = np.cos(tilt) * z / scale, np.sin(tilt) * z / scale
        ox, oy = left - x, top - y
        coefficients = (
            cos, sin, cos * ox + sin * oy + _HEAD[0] * z / 2,
            -sin, cos, -sin * ox + cos * oy + _HEAD[1] * z / 2,
        )  # fmt: skip
        size = tuple(int(side) for side in 2 * reach + 1)
        how = (size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
        frame.paste(image.transform(*how), (left, top), self.opacity.transform(*how))
        box = (_FACE - np.tile(_HEAD, 2) / 2) * scale
        return np.round(box + [x, y, x, y], 1)


def background(look, width=WIDTH, height=HEIGHT, seed=0):
    """A wall with light falling off and a little grain: a PIL image."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    light = 1.05 - 0.3 * np.hypot(*np.meshgrid(np.linspace(-0.8, 1, width), np.linspace(-0.7, 1, height)))
    wall = light[..., None] * look.wall + rng.normal(0, 2.0, (height, width, 1))
    return Image.fromarray(np.clip(wall, 0, 255).astype(np.uint8))


def sway(frames, seed):
    """Slow movement of a head: [frames, 4] of x and y in pixels, scale and tilt in radians, about 0."""
    rng = np.random.default_rng(seed)
    time = np.arange(frames) / FRAME_RATE
    waves = np.zeros((frames, 4))
    for _ in range(3):
        hz, phase = rng.uniform(0.05, 0.45, 4), rng.uniform(0, 2 * np.pi, 4)
        waves += np.sin(2 * np.pi * hz * time[:, None] + phase) / 3
    return waves * [11, 6, 0.04, 0.09]


def draw_frames(cast, frames, width=WIDTH, height=HEIGHT, seed=0):
    """Frames of talking faces.

    Args:
      cast: a list with a dictionary for every face: look (Look), opening and width ([frames], see `mouth_of_sound`),
        centre (x, y in pixels), scale, and if need be present ([frames], bool).
      frames: how many.
      width, height: pixels.
      seed: of sway, blinking and background.

    Yields:
      frame uint8 [height, width, 3], and [(face, x1, y1, x2, y2)] of the faces in it.
    """
    wall = background(cast[0]["look"], width, height, seed)
    heads = [Head(actor["look"]) for actor in cast]
    moves = [sway(frames, (seed, i)) for i in range(len(cast))]
    rng = np.random.default_rng((seed, 77))
    blinks = [np.convolve(rng.random(frames) < 1 / 90, np.ones(4))[:frames] > 0 for _ in cast]
    for n in range(frames):
        image, boxes = wall.copy(), []
        for i, (actor, head) in enumerate(zip(cast, heads)):
            if not actor.get("present", np.ones(1, bool))[min(n, len(actor.get("present", [0])) - 1)]:
                continue
            dx, dy, zoom, tilt = moves[i][n]
            scale = actor.get("scale", 1.0)
            x, y = actor["centre"][0] + scale * dx, actor["centre"][1] + scale * dy
            _shoulders(image, actor["look"], x - 0.4 * scale * dx, y, scale)
            box = head.paint(image, x, y, scale * (1 + zoom), tilt, actor["opening"][n], actor["width"][n],
                             not blinks[i][n])  # fmt: skip
            boxes.append((i, *box))
        yield np.asarray(image), boxes


def _shoulders(image, look, x, y, scale):
    from PIL import ImageDraw

    draw = ImageDraw.Draw(image)
    draw.ellipse([x - 105 * scale, y + 74 * scale, x + 105 * scale, y + 260 * scale], fill=look.shirt)


def write_talking(path, cast, sound, frames, seed=0, sample_rate=SAMPLE_RATE, width=WIDTH, height=HEIGHT, threads=0):
    """Writes a video of talking faces with its sound, and beside it where the faces are.

    Args:
      path: of the mp4; the boxes go to `clips.faces_path(path)`.
      cast, frames, width, height, seed: see `draw_frames`.
      sound: [samples], floats.

    Returns:
      [(frame, face, x1, y1, x2, y2)].
    """
    lines = []

    def pictures():
        for n, (frame, boxes) in enumerate(draw_frames(cast, frames, width, height, seed)):
            lines.extend((n, *box) for box in boxes)
            yield frame

    # The boxes come first, as a video that is there is taken as done.
    write_video(path, _boxes_first(pictures(), lines, path), sound, sample_rate, preset="ultrafast", keyframes=50,
                threads=threads)  # fmt: skip
    return lines


def _boxes_first(pictures, lines, path):
    yield from pictures
    write_boxes(faces_path(path), lines)


def single(talker, sex, samples, seed=0):
    """The cast of one talker for `write_talking`."""
    rng = random.Random(f"{seed} place {talker}")
    opening, width = mouth_of_sound(samples)
    scale = rng.uniform(0.72, 0.95)
    centre = (WIDTH / 2 + rng.uniform(-50, 50), HEIGHT / 2 + rng.uniform(-18, 8))
    return [dict(look=draw_look(talker, sex), opening=opening, width=width, centre=centre, scale=scale)]


def write_conversation(path, voices, *, leaves=None, seed=0, gains=None):
    """A video of faces side by side who all talk at once; its sound is the mean of their voices.

    Args:
      path: of the mp4, 640x360.
      voices: [(name, "m" or "f", samples)] of the talkers at 16 kHz, from left to right; the shortest is the length.
      leaves: {face: (from s, to s)} when a face is out of the picture, while its voice goes on.
      gains: of the voices.

    Returns:
      [talkers, samples]: the voices in the sound, and [(frame, face, x1, y1, x2, y2)].
    """
    samples = min(len(voice) for *_, voice in voices)
    frames = samples * FRAME_RATE // SAMPLE_RATE
    samples = frames * SAMPLE_RATE // FRAME_RATE
    gains = np.ones(len(voices)) if gains is None else np.asarray(gains)
    sources = np.stack([voice[:samples] for *_, voice in voices]) * gains[:, None] / len(voices)
    cast = []
    for i, (name, sex, voice) in enumerate(voices):
        opening, width = mouth_of_sound(voice[:samples])
        present = np.ones(frames, bool)
        if leaves and i in leaves:
            present[round(leaves[i][0] * FRAME_RATE) : round(leaves[i][1] * FRAME_RATE)] = False
        centre = (640 * (i + 0.5) / len(voices), 175)
        scale = min(1.0, 1.9 / len(voices))
        cast.append(dict(look=draw_look(name, sex), opening=opening, width=width, centre=centre, scale=scale,
                         present=present))  # fmt: skip
    lines = write_talking(path, cast, sources.sum(axis=0), frames, seed, width=640, height=360)
    return sources, lines


def make_talking_faces(folder, talkers_per_set, segments=3, seed=0, overwrite=False, num_workers=0):
    """Makes the corpus, or what is still missing of it.

    Args:
      folder: see the head of this file.
      talkers_per_set: {"tr": number, "cv": number, "tt": number}.
      segments: of 6 s, of every talker.
      seed: draws what is said and how heads move.
      overwrite: replace what was made in the folder with other settings.
      num_workers: processes; 0 takes one for every core.

    Returns:
      One line that sums up what there is.

    Raises:
      UserError: eSpeak NG or PyAV is not installed, or the folder holds something else.
    """
    settings = {"talkers": {name: talkers_per_set[name] for name in SETS}, "segments": segments, "seed": seed}
    settings["drawing"] = 2  # to be counted up when faces come to be drawn otherwise
    videos = os.path.join(folder, "videos")
    claim_folder(videos, settings, overwrite, companions=[
        os.path.join(folder, name) for name in ("list.csv", "split.csv", "conversation.mp4", "conversation.faces.csv")
    ])  # fmt: skip
    print(make_corpus(
        folder,
        seed=seed,
        talkers_per_set=talkers_per_set,
        mixtures_per_set=dict.fromkeys(SETS, 0),
        utterances_per_talker=int(np.ceil(segments * SEGMENT_SECONDS / SHORTEST_UTTERANCES_S)),
        sample_rate=SAMPLE_RATE,
        overwrite=overwrite,
        num_workers=num_workers,
    ))  # fmt: skip
    voices = os.path.join(folder, "voices", rate_folder(SAMPLE_RATE))
    jobs, split = [], []
    for set_name in SETS:
        for talker in sorted(os.listdir(os.path.join(voices, set_name))) if talkers_per_set[set_name] else ():
            wavs = sorted(glob.glob(os.path.join(glob.escape(os.path.join(voices, set_name, talker)), "*.wav")))
            # As long as the name of a video on YouTube.
            path = os.path.join(videos, f"{talker:-<11}.mp4")
            jobs.append(_Job(talker, talker[0], tuple(wavs), segments, path, seed))
            split.append((os.path.basename(path)[:-4], TABLES[set_name]))
    found = parallel_map(_make_video, jobs, num_workers, "talking faces")
    rows = [row for rows in found for row in rows]
    _make_conversation(folder, [job for job, (_, table) in zip(jobs, split) if table == TABLES["tt"]])
    write_text(os.path.join(folder, "split.csv"), "video,set\n" + "".join(f"{v},{s}\n" for v, s in split))
    write_text(os.path.join(folder, "list.csv"), "".join(",".join(map(str, row)) + "\n" for row in rows))
    return f"{folder}: {len(jobs)} videos, {len(rows)} segments of {SEGMENT_SECONDS} s"


def _make_conversation(folder, jobs):
    """Makes the video of two talkers, a man and a woman if there are both, unless it is there."""
    path = os.path.join(folder, "conversation.mp4")
    if len(jobs) < 2 or (os.path.exists(path) and os.path.exists(faces_path(path))):
        return
    first = jobs[0]
    second = next((job for job in jobs if job.sex != first.sex), jobs[1])
    voices = [
        (job.talker, job.sex, np.concatenate([read_mono(wav, SAMPLE_RATE) for wav in job.wavs]))
        for job in (first, second)
    ]
    write_conversation(path, voices, leaves={1: (4.0, 6.0)}, seed=first.seed)


def _make_video(job):
    """Makes the video of one talker unless it is there; rows of its segments: file, start, end, x, y."""
    speech = np.concatenate([read_mono(wav, SAMPLE_RATE) for wav in job.wavs])
    length = min(job.segments * SEGMENT_SECONDS, max(SEGMENT_SECONDS, len(speech) / SAMPLE_RATE))
    length = int(length // SEGMENT_SECONDS) * SEGMENT_SECONDS
    speech = np.pad(speech, (0, max(0, length * SAMPLE_RATE - len(speech))))[: length * SAMPLE_RATE]
    frames = length * FRAME_RATE
    if os.path.exists(job.path) and os.path.exists(faces_path(job.path)):
        lines = read_boxes(faces_path(job.path))
    else:
        look = zlib.crc32(f"{job.seed} {job.talker}".encode())
        lines = write_talking(job.path, single(job.talker, job.sex, speech, job.seed), speech, frames, look, threads=1)
    boxes = np.array(lines, np.float64)[:, 2:]
    rows = []
    for start in range(0, length, SEGMENT_SECONDS):
        inside = boxes[start * FRAME_RATE : (start + SEGMENT_SECONDS) * FRAME_RATE].mean(axis=0)
        x, y = (inside[0] + inside[2]) / 2 / WIDTH, (inside[1] + inside[3]) / 2 / HEIGHT
        rows.append((os.path.basename(job.path), start, start + SEGMENT_SECONDS, f"{x:.4f}", f"{y:.4f}"))
    return rows


def define_flags():
    flags.DEFINE_string("data_folder", "faces", "folder of the corpus")
    for set_name, talkers in (("tr", 120), ("cv", 15), ("tt", 15)):
        flags.DEFINE_integer(f"{set_name}_talkers", talkers, f"talkers of the set {set_name}", lower_bound=0)
    flags.DEFINE_integer("segments", 3, "segments of 6 s of every talker", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "draws what is said and how heads move")
    flags.DEFINE_bool("overwrite", False, "replace what was made in the folder with other settings")
    flags.DEFINE_integer("num_workers", 0, "processes; 0: one for every core", lower_bound=0)


def main(_):
    values = flags.FLAGS
    talkers = {name: values[f"{name}_talkers"].value for name in SETS}
    print(make_talking_faces(
        values.data_folder, talkers, values.segments, values.seed, values.overwrite, values.num_workers
    ))  # fmt: skip


if __name__ == "__main__":
    define_flags()
    run_script(main)
