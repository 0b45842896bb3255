"""The voices of a video's faces: what `nn/separate.py --video talk.mp4` does."""

import json
import os

import numpy as np

from feat.avspeech import embedders
from feat.avspeech.tracks import find_tracks
from feat.avspeech.video import read_frames, read_sound, video_info, write_video
from feat.base.files import UserError, atomic_path, write_text
from feat.base.parallel import progress
from feat.signals.audio import resample, write_wav

MARGIN = 0.35  # of a face's box, around what stays bright in a rendered video
DARK = 0.35  # factor of all else


def embedder_of(system, face_weights=""):
    """The embedder that a network was trained with.

    Args:
        system: nn.systems.looking_to_listen.recordings.AudioVisual.
        face_weights: file of FaceNet's weights, for networks that were trained with them.

    Raises:
        UserError: it cannot be had, or would not give the same numbers.
    """
    card = system.embedder
    if card is None:
        # A reference's checkpoint: FaceNet, whose pixels the reference does not standardise.
        card = {"name": "facenet", "size": system.model.embedding_dim, "standardised": False, "missing_is_black": True}
    name = card["name"]
    if name in embedders.EMBEDDERS:
        embedder = embedders.EMBEDDERS[name]()
    elif name == "facenet":
        from nn.systems.looking_to_listen.facenet import FaceNet

        if not face_weights:
            raise UserError(
                f"{system.source}: goes by FaceNet's embeddings; give the file of its weights, --face_weights FILE"
            )
        embedder = FaceNet(face_weights, card["standardised"], card["missing_is_black"])
    else:
        raise UserError(
            f"{system.source}: its embeddings are of {name!r}, which is not here; separate with"
            " nn.systems.looking_to_listen.recordings.generate_audio and embeddings of your own"
        )
    found = embedders.card(embedder)
    differing = [key for key in card if key in found and card[key] != found[key]]
    if differing:
        key = differing[0]
        raise UserError(
            f"{system.source}: was trained with {name} embeddings of {key} {card[key]}, here it is {found[key]}; give"
            " the same weights"
        )
    return embedder


def separate_video(separator, path, folder, name, embedder, *, detector="mtcnn", subtype="PCM_16", render=False):
    """Writes the voice of every face of a video, from left to right.

    Args:
        separator: nn.systems.separator.Separator of a system that goes by faces.
        path: any video with sound.
        folder: takes <name>_s1.wav, ... at the rate of the sound, <name>_s1.png, ..., the faces they belong to, and
            <name>.faces.json, which says what was written.
        embedder: of `embedder_of`.
        detector: see feat.avspeech.tracks.find_tracks.
        subtype: sample format of the outputs.
        render: also write <name>_s1.mp4, ..., the video with this voice, the face bright and all else dark.

    Returns:
        (lines that say what was written, paths of all of it).

    Raises:
        UserError: the video cannot be read, has no sound or no face; nothing was written.
    """
    system = separator.system
    info = video_info(path)
    if not info.has_sound:
        raise UserError(f"{path}: has no sound; give a video with the voices that are to be separated")
    sound, rate = read_sound(path)
    mixture = resample(sound.mean(axis=1), rate, separator.sample_rate)
    if not mixture.any():
        raise UserError(f"{path}: its sound is silent, every sample is 0; check how it was recorded")
    tracks = find_tracks(path, embedder, detector)
    kept = np.sort(np.argsort(-tracks.seconds, kind="stable")[: separator.talkers])
    lines = []
    if len(kept) < len(tracks.seconds):
        lines.append(
            f"{path}: {len(tracks.seconds)} faces; the network separates {separator.talkers}, so those that are seen"
            " longest were taken, the others count as background"
        )
    with progress(
        None, f"voices of {os.path.basename(path)}", 2 * separator.windows_of(len(mixture)), unit="window"
    ) as bar:
        blocks = system.separate(mixture, separator.windows, None, bar, embeddings=tracks.embeddings[kept])
        voices = np.concatenate(list(blocks), axis=1)
    voices = resample(voices.T, separator.sample_rate, rate)[: len(sound)].T
    peak = float(np.max(np.abs(voices), initial=0))
    factor = 1 / peak if peak > 1 and subtype.startswith("PCM") else 1.0
    if factor < 1:
        lines.append(
            f"{path}: the voices were made quieter by {20 * np.log10(peak):.1f} dB, together, to fit {subtype}"
        )
    faces, paths = [], []
    for number, (voice, track) in enumerate(zip(voices, kept), 1):
        stem = os.path.join(folder, f"{name}_s{number}")
        write_wav(stem + ".wav", factor * voice, rate, subtype)
        _write_picture(stem + ".png", tracks.thumbnails[track])
        written = [stem + ".wav", stem + ".png"]
        if render:
            frames = progress(
                bright_faces(read_frames(path), tracks.boxes[track]), f"render {number}", tracks.present.shape[1]
            )
            write_video(stem + ".mp4", frames, factor * voice, rate)
            written.append(stem + ".mp4")
        paths += written
        seconds = float(tracks.seconds[track])
        faces.append({"seen_s": seconds, "files": [os.path.basename(file) for file in written]})
        lines.append(f"{path}: face {number} from the left, seen for {seconds:.1f} s: {', '.join(written)}")
    summary = os.path.join(folder, f"{name}.faces.json")
    write_text(summary, json.dumps(faces, indent=1) + "\n")
    return lines, [*paths, summary]


def bright_faces(frames, places):
    """Yields frames with all but one face made dark.

    Args:
        frames: yields uint8 [height, width, 3].
        places: [frames, 4], boxes of the face, NaN where it is not seen.
    """
    for n, frame in enumerate(frames):
        dark = (DARK * frame).astype(np.uint8)
        if n < len(places) and np.isfinite(places[n]).all():
            x1, y1, x2, y2 = places[n]
            across, down = MARGIN * (x2 - x1), MARGIN * (y2 - y1)
            left, top = max(0, int(x1 - across)), max(0, int(y1 - down))
            part = np.s_[top : int(y2 + down) + 1, left : int(x2 + across) + 1]
            dark[part] = frame[part]
        yield dark


def _write_picture(path, pixels):
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
