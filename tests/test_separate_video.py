"""nn/separate.py --video on real, small videos of drawn faces, with a network that was not trained."""

import json
import shutil

import keras
import numpy as np
import pytest
import soundfile
import speech

from feat.avspeech import boxes, embedders, talking_faces
from feat.avspeech.video import read_frames, read_sound, video_info, write_video
from feat.signals.audio import write_pcm16
from models.looking_to_listen.network import LookingToListen
from nn.checkpoints import ours as checkpoint

SCRIPT = "nn/separate.py"
RATE = 16000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """exp/ with a network of two faces, and talk.mp4: three faces, of which the last is gone most of the time."""
    folder = tmp_path_factory.mktemp("video")
    keras.utils.set_random_seed(0)
    model = LookingToListen(
        faces=2, embedding_dim=128, channels=2, last_channels=2, video_channels=4, lstm_units=4, units=6
    )
    models = folder / "exp/looking_to_listen/models/test"
    prefix = str(models / "looking_to_listen_model.ckpt_step_1")
    checkpoint.save(prefix, model, keras.optimizers.Adam(), {})
    card = embedders.card(embedders.Mouth())
    checkpoint.write_config(str(models), "looking_to_listen", model, embedder=card, sample_rate=RATE)
    checkpoint.mark_best(prefix)
    voices = [(f"t{k}", "mfm"[k], speech.voice(k, k, 2.4, RATE)) for k in range(3)]
    talking_faces.write_conversation(str(folder / "talk.mp4"), voices, leaves={1: (0.8, 1.2), 2: (0.7, 2.4)})
    return folder


def options(**more):
    return dict(
        corpus_flags=False, resume_model="exp/looking_to_listen/models", detector="told", output_dir="out"
    ) | more  # fmt: skip


def test_every_face_gets_its_voice_and_its_video(folder):
    said = speech.succeed(folder, SCRIPT, "--render", video="talk.mp4", **options())
    assert "3 faces; the network separates 2" in said
    faces = json.loads((folder / "out/talk.faces.json").read_text())
    # The one that leaves and comes back is one face.
    np.testing.assert_allclose([face["seen_s"] for face in faces], [2.4, 2.0], atol=0.05)
    sound_samples = len(read_sound(folder / "talk.mp4")[0])
    places = boxes.by_frame(boxes.read_boxes(folder / "talk.faces.csv"))[0]
    turned = [places[0], places[1]]
    voices = []
    for number in (1, 2):
        voice, rate = soundfile.read(folder / f"out/talk_s{number}.wav")
        assert (rate, len(voice)) == (RATE, sound_samples) and np.isfinite(voice).all() and voice.any()
        voices.append(voice)
        rendered = folder / f"out/talk_s{number}.mp4"
        assert video_info(rendered).has_sound
        first = next(read_frames(rendered))
        mine, others = (first[slice(*box[1::2].astype(int)), slice(*box[::2].astype(int))].mean() for box in turned)
        assert mine > 1.5 * others
        turned.reverse()
        assert (folder / f"out/talk_s{number}.png").stat().st_size > 0
    assert np.abs(voices[0] - voices[1]).max() > 1e-4
    times = {path: path.stat().st_mtime_ns for path in (folder / "out").iterdir()}
    assert "separated already" in speech.succeed(folder, SCRIPT, "--render", video="talk.mp4", **options())
    assert times == {path: path.stat().st_mtime_ns for path in (folder / "out").iterdir()}
    told = folder / "talk.faces.csv"
    told.write_text(told.read_text() + "\n")  # of which they were made too
    assert "separated already" not in speech.succeed(folder, SCRIPT, "--render", video="talk.mp4", **options())
    (folder / "other").mkdir()
    for name in ("talk.mp4", "talk.faces.csv"):
        shutil.copy2(folder / name, folder / "other" / name)
    assert "separated already" not in speech.succeed(folder, SCRIPT, "--render", video="other/talk.mp4", **options())


def test_videos_that_cannot_be_used_are_named_and_the_others_are_separated(folder):
    silent = folder / "silent.mp4"
    write_video(silent, read_frames(folder / "talk.mp4", end=0.4))
    (folder / "broken.mp4").write_bytes((folder / "talk.mp4").read_bytes()[:3000])
    line = speech.refuse(folder, SCRIPT, video="silent.mp4", **options())
    assert "silent.mp4: has no sound" in line
    done = speech.run_here(folder, SCRIPT, "--video=broken.mp4", "--video=talk.mp4", **options(output_dir="out2"))
    assert done.returncode == 1 and "broken.mp4: broken or no video" in done.stderr
    assert "1 of 2 recordings were not separated" in done.stderr and (folder / "out2/talk_s2.wav").exists()
    assert not (folder / "out2/broken_s1.wav").exists()


def test_faces_are_asked_for(folder):
    write_pcm16(folder / "sound.wav", np.zeros(100), RATE)
    assert "separates by faces" in speech.refuse(folder, SCRIPT, "sound.wav", **options())
