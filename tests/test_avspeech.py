"""The audio-visual pipeline on small real videos: drawn faces that talk, a photograph that moves, and broken files."""

import csv
import json
import os
import pathlib
import zipfile

import numpy as np
import pytest
import speech
from golden_case import Case

from feat.avspeech import boxes, clips, embedders, geometry, mix, tables, talking_faces, video
from feat.avspeech.clips import FRAME_RATE, PART_SAMPLES, SAMPLE_RATE
from feat.avspeech.detector import Detector, follow_faces
from feat.avspeech.spectrograms import compressed_spectrogram
from feat.avspeech.tracks import find_tracks
from feat.base.files import UserError
from feat.signals.audio import read_mono, read_pcm16, write_pcm16

PHOTOGRAPH = pathlib.Path(__file__).parent / "golden" / "looking_to_listen" / "face_detect.npz"
STAGES = "feat/avspeech/"


def run(folder, stage, *flags, **named):
    """A stage on folder/data, in this process."""
    named = dict(data_folder="data") | named
    named = dict(num_workers=1) | named if stage not in ("clean", "archive") else named
    return speech.succeed(folder, f"{STAGES}{stage}.py", *flags, corpus_flags=False, **named)


def voices(count, seconds):
    return [(f"t{k}", "mf"[k % 2], speech.voice(k, 3 * k, seconds, SAMPLE_RATE)) for k in range(count)]


def corrupt(folder):
    """{(video, part): reason} of the corrupt list."""
    with open(folder / "data" / "corrupt.csv", newline="") as file:
        return {(row["video"], row["part"]): row["reason"] for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def photograph():
    return Case(PHOTOGRAPH)["in/image"]


def moving(photograph, frames, shown=lambda n: True, size=(288, 360)):
    """Frames of a photograph that wanders over grey, and where its corner is."""
    for n in range(frames):
        frame = np.full((*size, 3), 110, np.uint8)
        x, y = int(50 + 45 * np.sin(n / 20)), int(24 + 20 * np.cos(n / 13))
        if shown(n):
            frame[y : y + 240, x : x + 260] = photograph
        yield frame


# Lists and names ----------------------------------------------------------------------------------


def test_lists_without_a_header_and_names(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("-ab_CdEfGhI,58.5,62.25,0.5,0.4\n-ab_CdEfGhI,70,74,0.5,0.4\nfolder/talk 1.mov,,,,\nx,5,4,0.1,0.1\n"
                    "x,a,4,0.1,0.1\ny,0,4,0.2,\n")  # fmt: skip
    segments, problems = clips.read_list(path)
    assert [(s.start, s.end, s.x) for s in segments] == [(58.5, 62.25, 0.5), (70, 74, 0.5), (None, None, None)]
    assert [problem.reason.split(": ")[0] for problem in problems] == [f"line {n} of list.csv" for n in (4, 5, 6)]
    stems = clips.clip_stems(segments)
    assert list(stems.values()) == ["-ab_CdEfGhI_5000_4000_final", "-ab_CdEfGhI@70000_5000_4000_final"]
    assert {clips.video_id(stem) for stem in stems.values()} == {"-ab_CdEfGhI"}
    assert clips.point_of("a_b_c_1234_500_final") == (0.1234, 0.05)
    assert clips.part_of("x_1_2_final_part12") == ("x_1_2_final", 12)
    path.write_text("file,start,end,x,y\na.mp4,0,3,0.5,0.5\n")
    assert [s.id for s in clips.read_list(path)[0]] == ["a"]


# Videos -------------------------------------------------------------------------------------------


def test_frames_come_by_their_times_and_sound_stays_beside_them(tmp_path):
    path = str(tmp_path / "a.mp4")
    level = np.repeat(np.arange(60) * 4, 1)
    frames = (np.full((64, 64, 3), value, np.uint8) for value in level)
    click = np.zeros(2 * 48000)
    click[48000 : 48000 + 400] = 0.5
    video.write_video(path, frames, click, 48000, frame_rate=30)
    info = video.video_info(path)
    assert (info.width, info.height, info.has_sound) == (64, 64, True) and abs(info.frame_rate - 30) < 0.01
    shown = [frame.mean() for frame in video.read_frames(path)]
    assert len(shown) == 50
    wanted = np.round(np.arange(50) * 30 / 25) * 4
    assert np.abs(np.array(shown) - wanted).max() <= 5  # one picture of 30 a second is a step of 4
    part = [frame.mean() for frame in video.read_frames(path, 1.2, 1.6)]
    np.testing.assert_allclose(part, shown[30:40], atol=1.5)
    sound = video.read_mono_sound(path, SAMPLE_RATE)
    assert abs(np.flatnonzero(np.abs(sound) > 0.25)[0] - 16000) <= 16
    later = video.read_mono_sound(path, SAMPLE_RATE, 0.9, 1.5)
    assert abs(np.flatnonzero(np.abs(later) > 0.25)[0] - 1600) <= 16 and len(later) == 9600


# The whole pipeline on drawn faces ----------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """(folder, {talker: speech}) of four drawn talkers after all stages."""
    folder = tmp_path_factory.mktemp("drawn")
    said = {}
    rows = []
    for k, (name, sex, samples) in enumerate(voices(4, 6.5)):
        said[name] = samples
        path = str(folder / "videos" / f"{name}.mp4")
        lines = talking_faces.write_talking(
            path, talking_faces.single(name, sex, samples), samples, 162, seed=k, threads=1
        )
        middle = np.array([line[2:] for line in lines]).mean(axis=0)
        x, y = (middle[0] + middle[2]) / 2 / talking_faces.WIDTH, (middle[1] + middle[3]) / 2 / talking_faces.HEIGHT
        rows += [f"{name}.mp4,{start},{start + 3},{x:.4f},{y:.4f}" for start in (0, 3.4)]
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    (folder / "data").mkdir()
    (folder / "data" / "split.csv").write_text("video,set\nt0,train\nt1,train\nt2,val\nt3,val\n")
    run(folder, "crop", list="list.csv", video_folder="videos", preset="ultrafast")
    run(folder, "cut_audio")
    run(folder, "embed_faces", detector="told")
    run(folder, "mix", train_mixtures=3, val_mixtures=2)
    run(folder, "clean")
    return folder, said


def test_pieces_and_embeddings_follow_the_speech(drawn):
    folder, said = drawn
    data = folder / "data"
    stems = sorted(path.stem for path in data.glob("*_final.mp4"))
    assert len(stems) == 8 and sum("@3400" in stem for stem in stems) == 4
    card = json.loads((data / "embed" / "embedder.json").read_text())
    assert (card["name"], card["size"]) == ("mouth", 128)
    for stem in stems:
        start = 3.4 if "@" in stem else 0
        wanted = said[clips.video_id(stem)][round(start * SAMPLE_RATE) :][:PART_SAMPLES]
        piece = read_mono(data / "audio" / f"{stem}_part0.wav", SAMPLE_RATE)
        assert len(piece) == PART_SAMPLES
        assert np.corrcoef(piece, wanted)[0, 1] > 0.95  # AAC
        faces = np.load(data / "embed" / f"{stem}_part0.npy")
        assert faces.shape == (75, 128) and faces.dtype == np.float32
        opening, _ = talking_faces.mouth_of_sound(wanted)
        terms = np.c_[faces[:, :16], np.ones(75)]
        rest = opening - terms @ np.linalg.lstsq(terms, opening, rcond=None)[0]
        assert np.var(rest) < 0.3 * np.var(opening)


def test_tables_and_mixtures(drawn):
    folder, _ = drawn
    data = folder / "data"
    seen = {}
    for name, count in (("train", 3), ("val", 2)):
        rows, talkers, noise = tables.read_table(data / f"{name}.csv")
        assert (len(rows), talkers, noise) == (count, 2, False)
        for row in rows:
            ids = [clips.video_id(path) for path in row.audios]
            assert len(set(ids)) == 2 and [clips.video_id(path) for path in row.videos] == ids
            seen.setdefault(name, set()).update(ids)
            assert all((data / path).exists() for path in row.videos)
            sources = [read_pcm16(data / path, SAMPLE_RATE).astype(float) for path in row.audios]
            mixture = read_pcm16(data / row.mixed, SAMPLE_RATE)
            np.testing.assert_allclose(mixture, np.mean(sources, axis=0), atol=0.5)
    assert seen == {"train": {"t0", "t1"}, "val": {"t2", "t3"}}


def test_running_again_changes_nothing_and_fills_holes(drawn):
    folder, _ = drawn
    data = folder / "data"
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*.*") if path.suffix in (".wav", ".npy", ".mp4")}
    hole = next(iter(sorted((data / "embed").glob("*.npy"))))
    content = hole.read_bytes()
    hole.unlink()
    again = dict(crop=dict(list="list.csv", video_folder="videos"), cut_audio={}, embed_faces=dict(detector="told"))
    for stage, options in (again | dict(mix=dict(train_mixtures=3, val_mixtures=2))).items():
        run(folder, stage, **options)
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path for path in before if before[path] != after[path]} == {hole}
    assert hole.read_bytes() == content
    line = speech.refuse(
        folder, STAGES + "mix.py", corpus_flags=False, data_folder="data", train_mixtures=2, num_workers=1
    )
    assert "made with" in line and "--overwrite" in line


def test_another_embedder_is_refused(drawn):
    folder, _ = drawn
    with pytest.raises(UserError, match="name mouth .now dlib.*choose another --embed_folder"):
        embedders.claim_cache(folder / "data" / "embed", {"name": "dlib", "size": 128, "standardised": True})
    refused = speech.refuse(
        folder, STAGES + "embed_faces.py", corpus_flags=False, data_folder="data", embedder="npy", size=512
    )
    assert "embedder.json says 128 numbers, --size 512" in refused


def test_ready_embeddings_are_checked(tmp_path):
    folder = tmp_path / "data" / "embed"
    folder.mkdir(parents=True)
    for stem, shape in (("a_1_2_final_part0", (75, 6)), ("a_1_2_final_part1", (75, 5)), ("b_1_2_final_part0", (70, 6))):
        np.save(folder / f"{stem}.npy", np.zeros(shape, np.float32))
    run(tmp_path, "embed_faces", embedder="npy", size=6)
    assert corrupt(tmp_path).keys() == {("a_1_2_final", "1"), ("b_1_2_final", "0")}
    assert json.loads((folder / "embedder.json").read_text())["size"] == 6


def test_noise_has_a_column_and_archive_holds_it(drawn, tmp_path):
    folder, _ = drawn
    (tmp_path / "data").mkdir()
    os.symlink(folder / "data" / "audio", tmp_path / "data" / "audio")
    random = np.random.default_rng(0)
    for name in "ab":
        write_pcm16(tmp_path / "recordings" / f"{name}.wav", random.uniform(-1, 1, 40000), 8000)
    (tmp_path / "recordings" / "broken.wav").write_bytes(b"nothing")
    run(tmp_path, "noise", recordings="recordings")
    assert ("broken", "") in corrupt(tmp_path)
    assert np.abs(read_mono(tmp_path / "data" / "noise" / "a.wav", SAMPLE_RATE)).max() <= 0.2001
    run(tmp_path, "mix", noise_folder="data/noise", train_mixtures=4, validation_size=0, seed=3)
    rows, _, has_noise = tables.read_table(tmp_path / "data" / "train.csv")
    assert has_noise and all(row.noises for row in rows)
    for row in rows:
        parts = [read_pcm16(tmp_path / "data" / path, SAMPLE_RATE).astype(float) for path in row.audios + row.noises]
        np.testing.assert_allclose(read_pcm16(tmp_path / "data" / row.mixed), np.mean(parts, axis=0), atol=0.5)
    run(tmp_path, "archive", archive="all.zip")
    with zipfile.ZipFile(tmp_path / "all.zip") as packed:
        assert {"train.csv", rows[0].mixed, rows[0].audios[0], "noise/a.wav"} <= set(packed.namelist())


def test_draws_take_no_pieces_of_one_video_and_end_when_all_are_drawn():
    import random

    stems = [f"v{k}_1_1_final_part{j}" for k in range(3) for j in range(2)]
    found = mix.draw_combinations(stems, 100, 2, random.Random(0))
    assert len(found) == len({frozenset(pair) for pair in found}) == 12  # 3 pairs of videos, 4 of pieces each
    assert all(len({clips.video_id(stem) for stem in pair}) == 2 for pair in found)
    assert mix.draw_combinations(stems, 5, 4, random.Random(0)) == []
    parts = mix.split_pieces(stems, {"val": 0.34}, seed=1)
    assert {len(parts[name]) for name in ("train", "val")} == {4, 2} and len(
        {clips.video_id(s) for s in parts["val"]}
    ) == 1


def test_space_is_said_before_it_is_taken(drawn):
    folder, _ = drawn
    assert "8 pieces; 3 mixtures, 2 for train, 1 for val" in run(
        folder, "mix", "--dry_run", train_mixtures=2, val_mixtures=1
    )
    line = speech.refuse(
        folder, STAGES + "spectrograms.py", corpus_flags=False, data_folder="data", most_gb=0, num_workers=1
    )
    assert "GB would be written; give --yes" in line
    assert "13 spectrograms written" in run(folder, "spectrograms", "--yes", most_gb=0)
    assert np.load(folder / "data" / "spec" / "0.npy").shape == (257, 298, 2)


def test_spectrogram_of_a_frame_from_the_definition(drawn):
    x = speech.voice(1, 1, 2, SAMPLE_RATE).astype(np.float64)
    spectrogram = compressed_spectrogram(x)
    assert spectrogram.shape == (257, 298, 2)
    n = np.arange(400)
    frame = x[160 * 50 + 56 :][:400] / np.abs(x).max() * (0.5 - 0.5 * np.cos(2 * np.pi * n / 400))
    z = np.sum(frame * np.exp(-2j * np.pi * 20 * (n + 56) / 512))
    wanted = np.abs(z) ** 0.3 * np.exp(0.3j * np.angle(z))
    np.testing.assert_allclose(spectrogram[20, 50], [wanted.real, wanted.imag], rtol=1e-4)


# Detection and following --------------------------------------------------------------------------


class Counting:
    """A detector that counts how often all of it runs."""

    def __init__(self):
        self.detector, self.runs = Detector(), 0

    def __call__(self, frame):
        self.runs += 1
        return self.detector(frame)

    def examine(self, *arguments):
        return self.detector.examine(*arguments)


def test_following_finds_what_detection_in_every_frame_finds(photograph):
    detector = Counting()
    frames = list(moving(photograph, 60))
    followed = [found for _, found in follow_faces(frames, detector)]
    assert detector.runs <= 7
    assert all(list(found) == [0] for found in followed)
    for frame, found in list(zip(frames, followed))[::10]:
        assert geometry.overlaps(found[0], Detector()(frame).boxes)[0, 0] > 0.75


def test_a_face_that_leaves_and_comes_back_is_one_track(photograph, tmp_path):
    path = str(tmp_path / "talk.mp4")
    video.write_video(path, moving(photograph, 110, lambda n: not 40 <= n < 75), preset="ultrafast")
    tracks = find_tracks(path, embedders.Mouth())
    assert tracks.embeddings.shape == (1, 110, 128) and tracks.thumbnails.shape == (1, 96, 96, 3)
    seen = tracks.present[0]
    assert seen[:38].all() and not seen[45:74].any() and seen[82:].all()
    assert not tracks.embeddings[0, ~seen].any() and np.isnan(tracks.boxes[0, ~seen]).all()


def test_tracks_of_two_faces_go_with_their_voices(tmp_path):
    path = str(tmp_path / "two.mp4")
    sources, _ = talking_faces.write_conversation(path, voices(2, 4), leaves={1: (1, 2)})
    tracks = find_tracks(path, embedders.Mouth(), "told")
    assert tracks.embeddings.shape == (2, 100, 128)
    assert tracks.present[0].all() and tracks.present[1].sum() == 75
    np.testing.assert_allclose(tracks.seconds, [4, 3])
    both = tracks.present.all(axis=0)
    explained = np.zeros((2, 2))
    for i, source in enumerate(sources):
        opening = talking_faces.mouth_of_sound(source)[0][both]
        for j in range(2):
            terms = np.c_[tracks.embeddings[j][both][:, :12], np.ones(both.sum())]
            rest = opening - terms @ np.linalg.lstsq(terms, opening, rcond=None)[0]
            explained[i, j] = 1 - np.var(rest) / np.var(opening)
    assert (np.diag(explained) > 0.6).all() and (np.diag(explained) > explained[::-1].diagonal() + 0.1).all()


def test_a_video_without_faces_is_refused(tmp_path):
    path = str(tmp_path / "grey.mp4")
    video.write_video(path, (np.full((120, 160, 3), 99, np.uint8) for _ in range(15)))
    with pytest.raises(UserError, match="grey.mp4: no face is seen for 0.5 s; give a video"):
        find_tracks(path, embedders.Mouth())


# Bad input ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken(photograph, tmp_path_factory):
    """A folder of clips of which one is whole, after both stages that read clips."""
    folder = tmp_path_factory.mktemp("broken")
    data = folder / "data"
    data.mkdir()
    random = np.random.default_rng(0)
    sound = random.uniform(-0.3, 0.3, 3 * SAMPLE_RATE).astype(np.float32)
    still = moving(photograph, 1)
    whole = next(still)
    small = np.full_like(whole, 110)
    small[100:140, 150:193] = photograph[::6, ::6][:40, :43]
    two = np.full((288, 560, 3), 110, np.uint8)
    two[20:260, 10:270], two[20:260, 290:550] = photograph, photograph

    def write(stem, frame=whole, sound=sound, count=75, **options):
        video.write_video(
            str(data / f"{stem}_final.mp4"), [frame] * count, sound, SAMPLE_RATE, preset="ultrafast", **options
        )

    write("good_5000_4000")
    write("elsewhere_100_100")
    write("blank_5000_4000", np.full_like(whole, 110))
    write("small_4700_4100", small)
    write("two", two)
    write("silent_5000_4000", sound=None)
    write("long_5000_4000", sound=np.tile(sound, 2))
    write("short_5000_4000", sound=sound[:30000])
    write("slow_5000_4000", frame_rate=10)
    whole_file = (data / "good_5000_4000_final.mp4").read_bytes()
    (data / "cut_5000_4000_final.mp4").write_bytes(whole_file[: len(whole_file) // 2])
    (data / "text_5000_4000_final.mp4").write_text("no video")
    mangled = bytearray(whole_file)
    for place in random.integers(len(mangled) - 8000, len(mangled), 40):
        mangled[place] = random.integers(256)
    (data / "mangled_5000_4000_final.mp4").write_bytes(mangled)
    run(folder, "cut_audio")
    run(folder, "embed_faces")
    return folder


@pytest.mark.parametrize(
    ("clip", "part", "reason"),
    [
        ("elsewhere_100_100", "", "1 face, none at the point"),
        ("blank_5000_4000", "", "no face was found"),
        ("small_4700_4100", "", "pixels, 24 are needed"),
        ("two", "", "2 faces, and no point in its name"),
        ("silent_5000_4000", "", "has no sound"),
        ("long_5000_4000", "", "s of sound, 3.00 s of pictures"),
        ("short_5000_4000", "0", "the sound ends at 1.9"),
        ("slow_5000_4000", "", "10.00 frames/s, 25 are needed"),
        ("cut_5000_4000", "", "broken or no video"),
        ("text_5000_4000", "", "broken or no video"),
    ],
)
def test_unusable_clips_are_named(broken, clip, part, reason):
    assert reason in corrupt(broken)[f"{clip}_final", part]


def test_a_mangled_clip_ends_nothing(broken):
    assert ("mangled_5000_4000_final", "") in corrupt(broken)


def test_usable_clips_go_on_beside_unusable_ones(broken):
    data = broken / "data"
    assert (data / "audio" / "good_5000_4000_final_part0.wav").exists()
    assert np.load(data / "embed" / "good_5000_4000_final_part0.npy").shape == (75, 128)
    assert not list((data / "embed").glob("blank*"))
    assert mix.find_pieces(data) == ["good_5000_4000_final_part0"]
    assert not any(video == "good_5000_4000_final" for video, _ in corrupt(broken))


def test_a_video_that_breaks_off_is_refused(tmp_path, photograph):
    import av

    path, cut = str(tmp_path / "a.mp4"), str(tmp_path / "cut.mp4")
    video.write_video(path, moving(photograph, 60), preset="ultrafast")
    with av.open(path) as source, av.open(cut, "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    whole = pathlib.Path(cut).read_bytes()
    pathlib.Path(cut).write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.raises(UserError, match="cut.mp4: (truncated|broken)"):
        list(video.read_frames(cut))


def test_rows_of_a_list_that_cannot_be_had_are_named(tmp_path, photograph):
    (tmp_path / "videos").mkdir()
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, 4 * SAMPLE_RATE)
    video.write_video(str(tmp_path / "videos" / "a.mp4"), [next(moving(photograph, 1))] * 100, sound, SAMPLE_RATE)
    (tmp_path / "list.csv").write_text("a,0.5,3.5,0.5,0.4\nb,0,3,0.5,0.4\na,2,9,0.1,0.1\na,1,x,0,0\na.mp4,0,3\n")
    fetch = tmp_path / "fetch.sh"
    fetch.write_text("#!/bin/sh\necho private video >&2\nexit 3\n")
    fetch.chmod(0o755)
    said = run(tmp_path, "crop", list="list.csv", video_folder="videos", downloader=f"{fetch} {{id}} {{output}}")
    assert "2 clips" in said
    reasons = corrupt(tmp_path)
    assert "status 3: private video" in reasons["b_5000_4000_final", ""]
    assert "the video ends at 4.00 s" in reasons["a_1000_1000_final", ""]
    assert any("line 4 of list.csv" in reason for reason in reasons.values())
    found = sorted(path.name for path in (tmp_path / "data").glob("*.mp4"))
    assert found[1] == "a_5000_4000_final.mp4"
    x, y = clips.point_of(found[0].removesuffix(".mp4"))  # nobody said where: the largest face
    assert abs(x - 0.51) < 0.05 and abs(y - 0.49) < 0.08
    fetch.write_text(f"#!/bin/sh\ncp {tmp_path}/videos/a.mp4 $2\n")
    assert "3 clips" in run(
        tmp_path, "crop", list="list.csv", video_folder="videos", downloader=f"{fetch} {{id}} {{output}}"
    )
    assert not list((tmp_path / "data").glob(".download*"))


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        ("Conv2d_2b_3x3_BatchNorm", "conv2d_2b.bn"),
        ("Block35_1_Branch_2_Conv2d_0c_3x3", "repeat_1.0.branch2.2.conv"),
        ("Block17_10_Branch_0_Conv2d_1x1", "repeat_2.9.branch0.conv"),
        ("Block8_6_Conv2d_1x1", "block8.conv2d"),
        ("Mixed_6a_Branch_0_Conv2d_1a_3x3", "mixed_6a.branch0.conv"),
        ("Mixed_7a_Branch_2_Conv2d_1a_3x3_BatchNorm", "mixed_7a.branch2.2.bn"),
        ("Bottleneck_BatchNorm", "last_bn"),
        ("AvgPool", None),
    ],
)
def test_names_of_keras_facenet(layer, name):
    from nn.systems.looking_to_listen.facenet import keras_name

    assert keras_name(layer) == name


def test_facenet_needs_its_weights(tmp_path):
    named = dict(corpus_flags=False, data_folder="data", num_workers=1)
    assert "--face_weights is missing" in speech.refuse(tmp_path, "nn/systems/looking_to_listen/facenet.py", **named)
    assert "no such file" in speech.refuse(
        tmp_path, "nn/systems/looking_to_listen/facenet.py", face_weights="vggface2.pt", **named
    )


# The built-in corpus ------------------------------------------------------------------------------


def test_built_in_talking_faces(tmp_path):
    pytest.importorskip("espeakng_loader")
    options = dict(data_folder="data", tr_talkers=1, cv_talkers=1, tt_talkers=0, segments=1)
    assert "2 videos, 2 segments of 6 s" in run(tmp_path, "talking_faces", **options)
    data = tmp_path / "data"
    videos = sorted((data / "videos").glob("*.mp4"))
    assert all(len(path.stem) == 11 for path in videos)
    assert (data / "split.csv").read_text().splitlines()[0] == "video,set"
    info = video.video_info(str(videos[0]))
    assert (info.width, info.height, info.frame_rate, info.seconds) == (360, 288, 25, 6)
    first = {path: path.read_bytes() for path in videos}
    videos[0].unlink()
    run(tmp_path, "talking_faces", **options)
    assert {path: path.read_bytes() for path in videos} == first
    lines = (data / "list.csv").read_text().splitlines()
    assert len(lines) == 2 and len(boxes.read_boxes(clips.faces_path(str(videos[0])))) == 6 * FRAME_RATE
