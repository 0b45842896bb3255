"""Looking to Listen on recordings: as a system of nn.systems.trained, and as functions to call from Python.

    from nn.systems.looking_to_listen.recordings import generate_audio, load_model
    model = load_model("exp/looking_to_listen/models/test/best")
    voices = generate_audio(model, "mixture.wav", ["embed/left.npy", "embed/right.npy"], save=False)

Embeddings are arrays [images, size], or .npy files of these, of 25 images a second, the first at the beginning of the
sound; zeros stand for a face that is not seen.
"""

import os

import numpy as np
import tensorflow as tf

from feat.base.files import UserError, make_writable_directory
from feat.base.graph import compiled
from feat.signals import postprocess
from feat.signals.audio import read_mono, resample, wav_info, write_pcm16
from models.looking_to_listen.network import FRAMES_PER_IMAGE, LookingToListen
from models.looking_to_listen.spectra import HOP, SAMPLE_RATE
from nn.checkpoints import ours as checkpoint
from nn.checkpoints import readers
from nn.recordings.windows import Windows, join, piece

SYSTEM = "looking_to_listen"
CLIP_SECONDS = 3
# Windows of networks that take clips of 3 s alone, in frames.
CLIP_WINDOWS = Windows(CLIP_SECONDS * SAMPLE_RATE // HOP, CLIP_SECONDS * SAMPLE_RATE // HOP // 2)


def load_settings(source, **changes):
    """(constructor arguments of the network, config.json or {}) of a checkpoint, ours or a reference's.

    Args:
        changes: what a reference's checkpoint does not tell: spectrogram, levels, reshape.
    """
    config = checkpoint.read_config(source)
    if config is not None:
        if config["system"] != SYSTEM:
            raise UserError(f"{source}: holds {config['system']}, {SYSTEM} is needed; give a checkpoint of it")
        return config["model"], config
    settings, _ = readers.foreign_settings(source, SYSTEM)
    settings |= changes
    if settings["spectrogram"] == "asteroid":
        settings["levels"] = "none"
    return settings, {}


def load_model(source, **changes):
    """AudioVisualSeparator of a checkpoint: a prefix of ours, `best` beside it, or a PyTorch file of a reference.

    Args:
        changes: of a reference's checkpoint: spectrogram="asteroid" for the recipe's, reshape="legacy" (seed) or
            "legacy_mask" (recipe) for what was trained before 13 February 2021.

    Raises:
        UserError: it cannot be read, or is of another system.
    """
    settings, _ = load_settings(source, **changes)
    model = LookingToListen(**settings)
    readers.load_for_inference(source, SYSTEM, model)
    return AudioVisualSeparator(model)


class AudioVisualSeparator:
    """A trained network, ready for mixtures of any length, or of 3 s where it takes no other.

    Args:
        model: LookingToListen.
    """

    def __init__(self, model):
        self.model = model
        spec = [
            tf.TensorSpec([1, None], tf.float32),
            tf.TensorSpec([1, model.faces, None, model.embedding_dim], tf.float32),
        ]
        self._spectra = compiled(self._forward, *spec)
        free = tf.TensorSpec([1, model.faces, None, model.bins, 2], tf.float32)
        self._waves = compiled(lambda spectra: model.synthesise(spectra)[0], free)

    def _forward(self, mixture, embeddings):
        spectrum, _, peak = self.model.analyse(mixture)
        return self.model((spectrum, embeddings)), peak

    def spectra(self, mixture, embeddings):
        """([faces, frames, bins, 2] compressed spectrograms of the voices, peak of the mixture).

        Args:
            mixture: [samples].
            embeddings: [faces, images, size]; fewer faces than the network has are filled up with unseen ones.

        Raises:
            ValueError: there are more faces, or embeddings of another size.
        """
        model = self.model
        embeddings = np.asarray(embeddings, np.float32)
        faces, images, size = embeddings.shape
        if faces > model.faces or size != model.embedding_dim:
            raise ValueError(
                f"{faces} faces, {size} numbers each; the network has {model.faces}, {model.embedding_dim} numbers each"
            )
        whole = np.zeros((model.faces, images, size), np.float32)
        whole[:faces] = embeddings
        spectra, peak = self._spectra(np.asarray(mixture, np.float32)[None], whole[None])
        return spectra[0, :faces].numpy(), float(peak[0, 0])

    def waves(self, spectra):
        """Compressed spectrograms [faces, frames, bins, 2] -> [faces, samples], in their own units."""
        missing = self.model.faces - len(spectra)
        return self._waves(np.pad(spectra, [(0, missing)] + [(0, 0)] * 3)[None])[: len(spectra)].numpy()

    def __call__(self, mixture, embeddings, rescale=True):
        """Waveform [samples] and embeddings [faces, images, size] -> voices [faces, samples].

        Args:
            rescale: bring the voices to the level that they have in the mixture. That is known where the network was
                trained so; otherwise levels are such that the voices sum up to the mixture as well as can be.

        Raises:
            ValueError: see `spectra`.
        """
        mixture = np.asarray(mixture, np.float32)
        spectra, peak = self.spectra(mixture, embeddings)
        voices = self.waves(spectra)
        voices = np.pad(voices[:, : len(mixture)], [(0, 0), (0, max(0, len(mixture) - voices.shape[1]))])
        if not rescale:
            return voices
        if self.model.frontend.levels == "common":
            return voices * peak
        gains = np.linalg.lstsq(voices.T, mixture, rcond=None)[0]
        return voices * np.maximum(gains, 0)[:, None].astype(np.float32)


# Python API -----------------------------------------------------------------------------------------


def read_embeddings(video_paths, size):
    """[faces, images, size] of .npy files or arrays [images, size], cut to the shortest. Raises UserError."""
    arrays = []
    for number, given in enumerate(video_paths, 1):
        name = given if isinstance(given, (str, os.PathLike)) else f"embeddings of face {number}"
        try:
            array = np.load(given, allow_pickle=False) if name is given else np.asarray(given)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{name}: cannot be read ({error}); give a .npy of [images, {size}]") from error
        if array.ndim != 2 or array.shape[1] != size or array.dtype.kind != "f":
            raise UserError(
                f"{name}: {array.dtype} {list(array.shape)}, the network takes floats [images, {size}]; make the"
                " embeddings with the embedder that it was trained with"
            )
        arrays.append(array.astype(np.float32))
    images = min(map(len, arrays), default=0)
    if not images:
        raise UserError("no embeddings: give those of each face, [images, size]")
    return np.stack([array[:images] for array in arrays])


def read_sound(audio):
    """[samples] at 16 kHz of an array, a .npy of samples, or a sound file. Raises UserError."""
    if not isinstance(audio, (str, os.PathLike)):
        return np.asarray(audio, np.float32)
    ending = os.path.splitext(audio)[1].lower()
    if ending == ".npy":
        return np.load(audio, allow_pickle=False).astype(np.float32)
    if ending != ".wav":
        raise UserError(f"{audio}: a .wav or a .npy is needed; convert it")
    return resample(read_mono(audio), wav_info(audio).sample_rate, SAMPLE_RATE)


def generate_audio(
    model, audio_path, video_paths, save=True, output_dir="output", return_spectrograms=False, postprocess_audio=False
):
    """Separates one mixture.

    Args:
        model: AudioVisualSeparator, or a checkpoint for `load_model`.
        audio_path: .wav; .npy or array of samples at 16 kHz; or of a compressed spectrogram [bins, frames, 2].
        video_paths: for each face a .npy or an array [images, size].
        save: write a wav a face, named after its .npy, or 0.wav, 1.wav, ... .
        output_dir: takes them; is made.
        return_spectrograms: give the voices' compressed spectrograms, [bins, frames, 2] each, and stop there.
        postprocess_audio: put `feat.signals.postprocess.filter_audio` behind.

    Returns:
        List of arrays, one a face: waves [samples], or spectrograms.

    Raises:
        UserError: a file cannot be used, or does not fit the network.
    """
    separator = model if isinstance(model, AudioVisualSeparator) else load_model(model)
    network = separator.model
    embeddings = read_embeddings(video_paths, network.embedding_dim)
    if len(embeddings) > network.faces:
        raise UserError(f"{len(embeddings)} faces, the network separates {network.faces}; leave some out")
    mixture = read_sound(audio_path)
    if mixture.ndim == 3:
        spectrum = np.asarray(mixture, np.float32).transpose(1, 0, 2)
        whole = np.pad(embeddings, [(0, network.faces - len(embeddings)), (0, 0), (0, 0)])
        spectra = network((spectrum[None], whole[None]))[0, : len(embeddings)].numpy()
    elif return_spectrograms:
        spectra, _ = separator.spectra(mixture, embeddings)
    if return_spectrograms:
        return [x.transpose(1, 0, 2) for x in spectra]
    if mixture.ndim == 3:
        voices = separator.waves(spectra)
    elif network.fixed and len(mixture) > CLIP_SECONDS * SAMPLE_RATE:
        voices = np.concatenate(list(separate_windows(separator, mixture, embeddings, CLIP_WINDOWS)), axis=1)
    else:
        voices = separator(mixture, embeddings)
    if postprocess_audio:
        voices = postprocess.filter_audio(voices, SAMPLE_RATE)
    if save:
        make_writable_directory(output_dir)
        peak = max(1.0, float(np.max(np.abs(voices))))
        for number, (voice, given) in enumerate(zip(voices, video_paths)):
            named = isinstance(given, (str, os.PathLike))
            stem = os.path.splitext(os.path.basename(given))[0] if named else str(number)
            write_pcm16(os.path.join(output_dir, stem + ".wav"), voice / peak, SAMPLE_RATE)
    return list(voices)


# Long recordings ------------------------------------------------------------------------------------


def separate_windows(separator, samples, embeddings, windows, bar=None):
    """Voices of overlapping windows, cross-faded; the faces say whose each is.

    Args:
        separator: AudioVisualSeparator.
        samples: [samples], or what gives slices of it.
        embeddings: [faces, images, size] of the whole; where they end, nobody is seen.
        windows: nn.recordings.windows.Windows, in frames of HOP samples.
        bar: progress bar that is told of every window twice, or None.

    Yields:
        float32 [faces, some samples], one after the other as many as there are in `samples`.
    """
    total = samples.shape[-1]

    def images_of(frames):
        return -(-frames // FRAMES_PER_IMAGE)

    # In images, so that sound and faces of a window begin together.
    windows = Windows(max(1, images_of(windows.length)), max(1, images_of(windows.step)))
    images = images_of(-(-total // HOP))
    length = windows.length if separator.model.fixed else min(images, windows.length)
    size = FRAMES_PER_IMAGE * HOP

    def separated():
        for start in windows.starts(images):
            mixture = piece(samples, start * size, length * size)
            seen = piece(np.moveaxis(embeddings, 1, -1), start, length)
            yield start * size, separator(mixture, np.moveaxis(seen, -1, 1))
            if bar is not None:
                bar.update(2)

    done = 0
    for voices in join(separated()):
        yield voices[:, : max(total - done, 0)]
        done += voices.shape[1]


class AudioVisual:
    """Looking to Listen as a system of nn.systems.trained, but for `separate`, which needs the faces.

    Args:
        checkpoints: {"looking_to_listen": prefix, or file of PyTorch}.
    """

    NAME = "Looking to Listen"
    ENROLMENT = False
    FACES = True
    CHANNELS = None
    LATENCY = "window"
    causal = False

    def __init__(self, checkpoints):
        self.source = checkpoints[SYSTEM]
        _, config = load_settings(self.source)
        self.separator = load_model(self.source)
        self.model = self.separator.model
        self.embedder = config.get("embedder")
        self.sample_rate = SAMPLE_RATE
        self.hop_size = HOP
        self.talkers = self.model.faces

    def frames(self, samples):
        """Of a recording of so many samples."""
        return -(-samples // HOP)

    def spool_bytes(self, samples):
        """Nothing is kept of windows."""
        return 0

    def separate(self, samples, windows, spool=None, bar=None, enrolment=None, embeddings=None):
        """Yields the voices of the faces, [faces, some samples], in their order; see nn.systems.trained.

        Args:
            embeddings: [faces, images, size], 25 images a second, of the whole recording, zeros where a face is not
                seen; no more faces than the network has.

        Raises:
            UserError: there are none, or they do not fit the network.
        """
        if embeddings is None:
            raise UserError(
                f"{self.source}: separates by the faces that are seen; give their video to nn/separate.py --video"
            )
        faces, _, size = np.shape(embeddings)
        if faces > self.talkers or size != self.model.embedding_dim:
            raise UserError(
                f"{self.source}: for {self.talkers} faces, {self.model.embedding_dim} numbers each; {faces} faces with"
                f" {size} numbers are given"
            )
        if self.model.fixed:
            windows = CLIP_WINDOWS
        yield from separate_windows(self.separator, samples, np.asarray(embeddings, np.float32), windows, bar)

    def stream(self, enrolment=None):
        """Raises UserError: the network looks at what is still to come."""
        raise UserError(f"{self.source}: not causal, it looks at what is still to come; separate whole recordings")
