"""Looking to Listen beyond the numbers of the reference: any length, data, training, inference, long recordings."""

import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from audio_visual_corpus import RATE, SIZE, write_corpus
from speech import assert_same_batches, listed, refuse, refuse_once, succeed, voice

from feat.base.files import UserError
from feat.batches import looking_to_listen
from feat.signals.audio import read_mono
from models import losses
from models.layers.conv import dilated_conv
from models.layers.tiled_conv import tiled_conv
from models.looking_to_listen.network import LookingToListen
from models.looking_to_listen.spectra import KINDS, Frontend
from nn.checkpoints import ours as checkpoint
from nn.recordings.windows import Windows
from nn.systems.looking_to_listen import recordings
from nn.systems.looking_to_listen.recordings import AudioVisualSeparator, generate_audio, separate_windows
from nn.training import rules
from nn.training.task import LoopState

SCRIPT = "nn/looking_to_listen.py"
SMALL = dict(channels=3, last_channels=2, video_channels=4, lstm_units=5, units=6, embedding_dim=SIZE)
SMALL_FLAGS = dict(n_channels=3, n_last_channels=2, n_video_channels=4, n_lstm_units=5, n_units=6)
TRAIN = SMALL_FLAGS | dict(
    data_folder="av", is_deploy=0, batch_size=2, segment_seconds=0.5, pictures=1, dynamic_mixing=True, epoch_mixtures=4
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), noise=True)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return LookingToListen(**SMALL)


@pytest.fixture(scope="module")
def separator(model):
    return AudioVisualSeparator(model)


# Network --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_waves_come_back_from_spectrograms(kind):
    wave = voice(1, 0, 3.0, RATE)[None]
    frontend = Frontend(kind, "none" if kind == "asteroid" else "common", fixed=kind == "asteroid")
    spectrum, _, peak = frontend.analyse(wave)
    back = np.asarray(frontend.synthesise(spectrum, wave.shape[1]) * peak)
    assert losses.snr(back, wave)[0] > (20 if kind == "asteroid" else 60)


def test_quiet_and_silent_mixtures_have_gradients():
    for wave in (np.zeros((1, 4000), np.float32), np.full((1, 4000), 1e-30, np.float32)):
        frontend = Frontend("seed")
        spectrum = tf.constant(frontend.analyse(wave)[0])
        with tf.GradientTape() as tape:
            tape.watch(spectrum)
            total = tf.reduce_sum(tf.square(frontend.synthesise(spectrum)))
        assert np.isfinite(tape.gradient(total, spectrum)).all()


def test_dilated_convolution_equals_tensorflow(rng=np.random.default_rng(0)):
    x, kernel = rng.standard_normal((2, 11, 13, 3)), rng.standard_normal((5, 3, 3, 4))
    for dilation in ((1, 1), (4, 1), (2, 8)):
        theirs = tf.nn.conv2d(x, kernel, 1, "SAME", dilations=dilation)
        np.testing.assert_allclose(dilated_conv(x, kernel, dilation), theirs, atol=1e-9)


@pytest.mark.parametrize("rows", [37, 131])
def test_tiled_convolution_equals_the_direct_one(rows):
    generator = np.random.default_rng(0)
    x, kernel, bias = (generator.standard_normal(s, np.float32) for s in ((2, rows, 23, 3), (5, 5, 3, 4), 4))
    for dilation in ((1, 1), (1, 2), (1, 16), (4, 4), (32, 32)):
        theirs = tf.nn.conv2d(x.astype(float), kernel.astype(float), 1, "SAME", dilations=dilation) + bias
        for examples in (1, 2):
            ours = tiled_conv(tf.constant(x[:examples]), tf.constant(kernel), dilation, bias)
            np.testing.assert_allclose(ours, theirs[:examples], atol=2e-6 * np.abs(theirs).max())


def test_swapped_faces_swap_nothing_but_what_the_network_makes_of_them(separator, model):
    """Every face has its output: an unseen face is filled up, too many are refused, and the length is free."""
    generator = np.random.default_rng(0)
    for samples in (4000, 7900):
        faces = generator.standard_normal((2, samples // 640 + 1, SIZE))
        mixture = voice(0, 1, samples / RATE, RATE)[:samples]
        voices = separator(mixture, faces)
        assert voices.shape == (2, samples) and np.isfinite(voices).all()
        alone = separator(mixture, faces[:1])
        zeros = np.stack([faces[0], np.zeros_like(faces[0])])
        np.testing.assert_allclose(alone[0], separator(mixture, zeros)[0], atol=1e-6)
        np.testing.assert_allclose(separator(3 * mixture, faces), 3 * voices, atol=1e-5)
    with pytest.raises(ValueError, match="3 faces"):
        separator(mixture, np.zeros((3, 5, SIZE)))


def test_configuration_round_trips(model):
    again = LookingToListen.from_config(model.get_config())
    assert again.get_config() == model.get_config()
    with pytest.raises(ValueError, match="mask 'real'"):
        LookingToListen(mask="real")


def test_cyclic_rate_moves_in_validation_too_if_asked():
    plain, moved = (rules.CyclicRule(1.0, 10.0, 4, 2, extra) for extra in (0, 2))
    state = LoopState
    assert [plain.rate(state(step=i)) for i in (1, 5, 9)] == [1.0, 10.0, 1.0]
    assert moved.rate(state(step=3)) == plain.rate(state(step=5))


# Data -----------------------------------------------------------------------------------------------


def test_mixtures_of_a_table_are_the_mean_of_their_talkers(corpus):
    found = looking_to_listen.audio_visual_set(corpus, looking_to_listen.read_table(corpus / "val.csv"), 2, SIZE)
    for batch in listed(looking_to_listen.evaluate(found)):
        np.testing.assert_allclose(batch["mixture"][0], batch["sources"][0].sum(axis=0), atol=1e-4)
        assert batch["embeddings"].shape == (1, 2, 25, SIZE)


def test_mixing_depends_on_seed_and_epoch_alone(corpus):
    pool = looking_to_listen.audio_visual_pieces(corpus, looking_to_listen.read_table(corpus / "train.csv"), 2, 2, SIZE)
    options = dict(batch_size=2, batches=4, seed=1, samples=RATE, drop_faces=0.5)
    ours = listed(looking_to_listen.mixed_batches(pool, epoch=0, **options))
    assert_same_batches(ours[1:], listed(looking_to_listen.mixed_batches(pool, epoch=0, skip=1, **options)))
    assert not np.array_equal(
        ours[0]["mixture"], listed(looking_to_listen.mixed_batches(pool, epoch=1, **options))[0]["mixture"]
    )
    for batch in ours:
        np.testing.assert_allclose(batch["mixture"], batch["sources"].sum(axis=1), atol=1e-6)
        seen = np.abs(batch["embeddings"]).max(axis=(2, 3)) > 0
        assert seen.any(axis=1).all()
    drawn = looking_to_listen.draw_mixtures(pool, 50, RATE, 0, 0)
    # An error names these files, whatever the pieces of them are.
    np.testing.assert_array_equal(
        looking_to_listen.draw_mixtures(pool, 50, 1, 0, 0, drop_faces=0.5).picked, drawn.picked
    )
    assert (pool.videos[drawn.picked[:, 0]] != pool.videos[drawn.picked[:, 1]]).all()


def test_a_face_moves_with_its_sound(corpus):
    pool = looking_to_listen.audio_visual_pieces(corpus, looking_to_listen.read_table(corpus / "train.csv"), 2, 1, SIZE)
    options = dict(shift_images=10, gain_db=0.0)
    drawn = looking_to_listen.draw_mixtures(pool, 4, RATE, 0, 0, **options)
    batches = listed(looking_to_listen.mixed_batches(pool, 1, 4, 0, 0, samples=RATE, **options))
    assert np.any(drawn.shifts[:, 0] > 0)
    for batch, shift in zip(batches, drawn.shifts[:, 0]):
        images = np.flatnonzero(np.abs(batch["embeddings"][0, 0]).max(axis=1))
        assert images[0] == max(shift, 0) and images[-1] == 24 + min(shift, 0)
        assert not batch["sources"][0, 0, : max(shift, 0) * 640].any()


def test_what_is_wrong_with_the_data_is_named(corpus, tmp_path):
    bad = write_corpus(tmp_path / "bad", videos=2, parts=1)
    rows = looking_to_listen.read_table(bad / "train.csv")
    path = bad / rows[0].embeddings[0]
    np.save(path, np.zeros((25, SIZE + 1), np.float32))
    with pytest.raises(UserError, match=f"{path.name}: shape"):
        looking_to_listen.audio_visual_set(bad, rows, 2, SIZE)
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name}: missing"):
        looking_to_listen.audio_visual_pieces(bad, rows, 2, 2, SIZE)
    with pytest.raises(UserError, match="of 2 talkers, the network has 3 faces"):
        looking_to_listen.audio_visual_set(corpus, looking_to_listen.read_table(corpus / "val.csv"), 3, SIZE)
    with pytest.raises(UserError, match="no column"):
        (bad / "val.csv").write_text("a,b\n1,2\n")
        looking_to_listen.read_table(bad / "val.csv")
    (bad / "embed" / "embedder.json").unlink()
    with pytest.raises(UserError, match="embedder.json: no such file"):
        looking_to_listen.require_embedder(bad, None, "")


# Scripts --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    write_corpus(folder / "av", videos=3, seconds=0.5)
    said = succeed(folder, SCRIPT, corpus_flags=False, epoch=1, **TRAIN)
    assert "2 steps, best validation si_sdr" in said and "sdri" in said
    return folder


def test_training_scores_and_separates(trained):
    models = trained / "exp/looking_to_listen/models/test"
    assert json.loads((models / "config.json").read_text())["embedder"] == {"name": "numbers", "size": SIZE}
    assert list((models / "pictures").glob("*.png"))
    said = succeed(
        trained, SCRIPT, corpus_flags=False, data_folder="av", is_deploy=1, count=1, num_workers=1, filter=True
    )
    assert "by face" in said
    voices = list((trained / "exp/looking_to_listen/output_val").glob("*/*.wav"))
    assert len(voices) == 2 and all(len(read_mono(str(path), RATE)) == RATE // 2 for path in voices)


def test_scoring_goes_on_where_it_ended(trained):
    flags = dict(corpus_flags=False, data_folder="av", is_deploy=1, num_workers=1)
    output = trained / "exp/looking_to_listen/output_val"
    whole = succeed(trained, SCRIPT, **flags)
    scores = (output / "scores/scores.csv").read_text()
    row = looking_to_listen.read_table(trained / "av/val.csv")[1]
    stem = row.embeddings[0].rsplit("/", 1)[1].removesuffix(".npy")
    refuse_once(trained, output / row.name / f"{stem}.wav", SCRIPT, **flags)
    printed = succeed(trained, SCRIPT, **flags | {"num_workers": 2})
    assert "going on, 1 mixtures are done" in printed and printed.endswith(whole)
    assert (output / "scores/scores.csv").read_text() == scores
    assert not (output / "unfinished.jsonl").exists()


def test_embeddings_of_another_embedder_are_refused(trained):
    card = trained / "av/embed/embedder.json"
    kept = card.read_text()
    card.write_text(json.dumps({"name": "others", "size": SIZE}))
    for deploy in (0, 1):
        line = refuse(trained, SCRIPT, corpus_flags=False, **TRAIN | {"is_deploy": deploy, "epoch": 3})
        assert "name of the embeddings is others" in line and "numbers" in line
    card.write_text(kept)


def test_a_checkpoint_from_python(trained, tmp_path):
    prefix = str(trained / "exp/looking_to_listen/models/test/best")
    loaded = recordings.load_model(prefix)
    row = looking_to_listen.read_table(trained / "av/val.csv")[0]
    faces = [str(trained / "av" / path) for path in row.embeddings]
    mixture = trained / "av" / row.mixed
    voices = generate_audio(loaded, str(mixture), faces, output_dir=str(tmp_path / "out"))
    for face, ours in zip(faces, voices):
        written = read_mono(str(tmp_path / "out" / (pathlib.Path(face).stem + ".wav")), RATE)
        np.testing.assert_allclose(written, ours / max(1, np.abs(voices).max()), atol=1e-4)
    spectra = generate_audio(loaded, read_mono(str(mixture)), faces, save=False, return_spectrograms=True)
    assert spectra[0].shape[0] == 257 and len(spectra) == 2
    with pytest.raises(UserError, match="embeddings of face 1: .* the network takes"):
        generate_audio(loaded, str(mixture), [np.zeros((5, 9), np.float32)])
    with pytest.raises(UserError, match="give their video"):
        next(recordings.AudioVisual({"looking_to_listen": prefix}).separate(np.zeros(100), Windows(4, 2)))


def test_a_checkpoint_of_the_reference_separates(tmp_path):
    torch = pytest.importorskip("torch")
    settings = SMALL | {"frames": 298}
    source = LookingToListen(**settings, norm="time", mask="sigmoid", spectrogram="seed", levels="separate", fixed=True)
    from nn.checkpoints.looking_to_listen import catalyst_names

    weights = checkpoint.weight_names(source.variables)
    state = {}
    for ours, theirs in catalyst_names(source).items():
        array = weights[ours].numpy()
        array = array[None] if array.ndim == 3 else array
        state[f"module.{theirs}"] = torch.tensor(np.ascontiguousarray(array.T))
    for end in ("", "_reverse"):
        both = state.pop(f"module.lstm.bias_l0{end}")
        state[f"module.lstm.bias_ih_l0{end}"], state[f"module.lstm.bias_hh_l0{end}"] = 0.25 * both, 0.75 * both
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "best_full.pth")
    loaded = recordings.load_model(str(tmp_path / "best_full.pth"))
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((1, 298, 257, 2), np.float32), generator.standard_normal((1, 2, 75, SIZE))
    np.testing.assert_allclose(loaded.model(inputs), source(inputs), atol=1e-5)


# Long recordings ------------------------------------------------------------------------------------


def test_windows_cover_a_recording(separator):
    samples = voice(0, 3, 2.03, RATE)
    faces = np.random.default_rng(0).standard_normal((2, 51, SIZE)).astype(np.float32)
    whole = np.concatenate(list(separate_windows(separator, samples, faces, Windows(400, 200))), axis=1)
    padded = np.pad(samples, (0, 51 * 640 - len(samples)))
    np.testing.assert_allclose(whole, separator(padded, faces)[:, : len(samples)], atol=1e-5)
    parts = np.concatenate(list(separate_windows(separator, samples, faces, Windows(80, 40))), axis=1)
    assert parts.shape == (2, len(samples)) and np.isfinite(parts).all()
    # The first window is alone where the second has not begun.
    first = separator(padded[: 80 * 160], faces[:, :20])
    np.testing.assert_allclose(parts[:, : 40 * 160], first[:, : 40 * 160], atol=1e-5)
