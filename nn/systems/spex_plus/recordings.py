"""Extraction of one talker by a trained SpEx+: of whole signals, of recordings of any length, and whether he is there.

Confidence is how alike the embedding of the enrolment is to those of what was extracted and of the mixture. The
threshold below which the talker counts as absent is measured by `nn/spex_plus.py --is_deploy 1 --absent` and kept
beside the checkpoint.

The network is used to the levels of its training, and loses much at others. config.json has them ("levels_db"), and
what is extracted from, and by, is brought there first.
"""

import os

import numpy as np
import tensorflow as tf

from feat.base.files import UserError, brief
from feat.base.graph import compiled
from feat.batches.common import SILENT_PEAK
from feat.signals.audio import read_blocks, read_first_channel, resample, wav_info
from models.spex_plus.network import BRANCHES, SAMPLE_RATES, SpexPlus
from models.spex_plus.streaming import StreamingExtractor
from nn.checkpoints import ours as checkpoint
from nn.checkpoints import readers
from nn.checkpoints.spex_plus import told_settings
from nn.recordings.streams import compile_step
from nn.recordings.windows import Windows, join
from nn.systems.spex_plus.presence import read_threshold

LEVELS = ("projection", "peak", "none")
LIVE_LEVELS = ("projection", "none")  # which need nothing of what is still to come
REJECT = ("no", "file", "window")
LEAST_ENROLMENT_S = 0.5
ENROLMENT_PIECE_S = 20.0  # embedded at a time; the embedding is a mean over time
PIECE_FRAMES = 1000  # read at a time to measure a level
SILENT_SHARE = 1e-3  # windows whose estimate has less of the energy of the loudest tell nothing


def stored_settings(source):
    """(constructor arguments, config) of a checkpoint: those of config.json, or what a PyTorch file tells."""
    config = checkpoint.read_config(source)
    if config:
        return config["model"], config
    settings, reader = readers.foreign_settings(source, "spex_plus")
    told, sample_rate = told_settings(source, reader.variant, settings)
    return settings | told, {"variant": reader.variant, "sample_rate": sample_rate or SAMPLE_RATES[reader.variant]}


class Level:
    """The factor for an estimate, whose level SI-SDR leaves open; it may come in pieces.

    Args:
        level: "projection": to the share that it has in the mixture, by least squares. "peak": to the peak of the
            mixture, as gemengtju/SpEx_Plus does. "none": 1.
    """

    def __init__(self, level="projection"):
        self.level = level
        self.shared = self.energy = 0.0
        self.peaks = [0.0, 0.0]  # of mixture and estimate

    def add(self, estimate, mixture):
        """Takes the next samples of both, [samples]."""
        self.shared += float(np.dot(mixture, estimate))
        self.energy += float(np.dot(estimate, estimate))
        self.peaks = [max(peak, np.max(np.abs(x), initial=0)) for peak, x in zip(self.peaks, (mixture, estimate))]

    @property
    def factor(self):
        if self.level == "projection":
            return self.shared / max(self.energy, 1e-9)
        return self.peaks[0] / max(self.peaks[1], 1e-9) if self.level == "peak" else 1.0


def match_level(estimate, mixture, level):
    """An estimate [samples] at its level in a mixture [samples], see `Level`."""
    match = Level(level)
    match.add(estimate, mixture)
    return (match.factor * estimate).astype(np.float32)


def frame_powers(signal, frame):
    """Mean squares of the whole frames, of so many samples, of a signal [samples]; of all of it if it is shorter."""
    frames = signal[: len(signal) // frame * frame].reshape(-1, frame) if len(signal) >= frame else signal[None]
    return np.mean(np.square(frames), axis=1)


def loud_frames(powers, below_db=20.0):
    """Which of the frames with these powers are not so far below the loudest, bool."""
    return powers >= 10 ** (-below_db / 10) * powers.max()


def loud_parts(signal, frame):
    """The loud frames of a signal [samples], one after the other."""
    if len(signal) < frame:
        return signal
    frames = signal[: len(signal) // frame * frame].reshape(-1, frame)
    return frames[loud_frames(frame_powers(signal, frame))].ravel()


def level_db(powers):
    """Level of a signal by the powers of its frames: that of the loud ones, whatever pauses there are."""
    return 10 * np.log10(max(np.mean(powers[loud_frames(powers)]), 1e-20))


def as_waveform(samples, name):
    """float32 [samples] of what was given as an enrolment. Raises UserError, with its name, if it is none."""
    try:
        samples = np.asarray(samples, np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: not a waveform ({brief(error)}); give [samples], or the path of a file") from error
    if samples.ndim != 1:
        raise UserError(
            f"{name}: a waveform of shape {samples.shape}; one channel, [samples], is needed, of several enrolments a"
            " list of them"
        )
    if not np.isfinite(samples).all():
        raise UserError(f"{name}: holds NaN or infinite samples; make it again")
    return samples


class TrainingLevels:
    """The levels of the signals of a training set, for config.json.

    Args:
        frame: samples.
    """

    def __init__(self, frame):
        self.frame = frame
        self.found = {"mixture": [], "enrolment": []}

    def add(self, batch):
        """Takes a batch as SpexPlus does."""
        for name, length in (("mixture", "samples"), ("enrolment", "enrolment_samples")):
            for signal, samples in zip(batch[name].numpy(), batch[length].numpy()):
                self.found[name].append(level_db(frame_powers(signal[:samples], self.frame)))

    @property
    def levels_db(self):
        """{"mixture": dB, "enrolment": dB}, medians."""
        return {name: round(float(np.median(found)), 2) for name, found in self.found.items()}


class Extractor:
    """A trained SpEx+, for signals at its sample rate that fit into memory.

    Args:
        model: SpexPlus.
        levels_db: {"mixture", "enrolment": dB} of its training, to which signals are brought; None: as they come.
        parity: enrolments are embedded whole, of their first channels, as the reference implementations do.
    """

    def __init__(self, model, levels_db=None, parity=False):
        self.model = model
        self.frame = model.windows[1]
        self.levels_db = levels_db or {}
        self.parity = parity
        waveforms = tf.TensorSpec([None, None], tf.float32)
        vectors = tf.TensorSpec([None, None], tf.float32)
        self._embed = compiled(lambda x: model.embed(x), waveforms)
        self._extract = compiled(lambda x, v: model.extract(x, v)[BRANCHES[0]], waveforms, vectors)
        self._embeddings = {}

    def embed(self, enrolment):
        """Waveform [samples] -> embedding [embedding_dim]. One that is too short is repeated."""
        needed = self.model.shortest_enrolment
        if len(enrolment) < needed:
            enrolment = np.tile(enrolment, -(-needed // max(1, len(enrolment))))
        return self._embed(np.asarray(enrolment, np.float32)[None])[0].numpy()

    def embed_files(self, paths, sample_rate):
        """Mean embedding [embedding_dim] of recordings of any length and rate; kept for the next time.

        Raises:
            UserError: one is missing, unusable, silent or too short.
        """
        return np.mean([self._embed_file(os.fspath(path), sample_rate) for path in paths], axis=0)

    def _embed_file(self, path, sample_rate):
        info = wav_info(path)
        key = path, os.stat(path).st_mtime_ns, sample_rate
        if key not in self._embeddings:
            if self.parity:
                samples = read_first_channel(path, sample_rate, parity=True)
            else:
                samples = resample(np.concatenate(list(read_blocks(path))), info.sample_rate, sample_rate)
            self._embeddings[key] = self.embed_speech(samples, sample_rate, path)
        return self._embeddings[key]

    def embed_speech(self, samples, sample_rate, name="enrolment"):
        """Embedding of an enrolment [samples], at whatever level. Raises UserError, with its name, if it is useless.

        A long one is embedded in pieces, each of which counts by how much of it is loud.
        """
        samples = as_waveform(samples, name)
        seconds = len(samples) / sample_rate
        if seconds < LEAST_ENROLMENT_S:
            raise UserError(
                f"{name}: {seconds:.2f} s of the wanted talker, {LEAST_ENROLMENT_S} s are needed;"
                " give a longer enrolment"
            )
        if np.max(np.abs(samples)) < SILENT_PEAK:
            raise UserError(f"{name}: silent, so it shows no voice; record the enrolment again")
        samples = self.gain("enrolment", frame_powers(samples, self.frame)) * samples
        pieces = np.array_split(samples, 1 if self.parity else -int(-seconds // ENROLMENT_PIECE_S))
        powers = [frame_powers(piece, self.frame) for piece in pieces]
        loud = np.split(loud_frames(np.concatenate(powers)), np.cumsum([len(power) for power in powers])[:-1])
        shares = np.array([np.count_nonzero(part) for part in loud]) / np.count_nonzero(np.concatenate(loud))
        embeddings = [share * self.embed(piece) for share, piece in zip(shares, pieces) if share]
        return np.sum(embeddings, axis=0).astype(np.float32)

    def gain(self, kind, powers):
        """Factor that brings a "mixture" or an "enrolment" with frames of these powers to the level of training."""
        if kind not in self.levels_db or not np.any(powers):
            return np.float32(1)
        return np.float32(10 ** ((self.levels_db[kind] - level_db(powers)) / 20))

    def estimate(self, mixture, embedding, gain=None):
        """The talker of an embedding [embedding_dim] in a mixture [samples], at whatever level: [samples].

        Args:
            gain: for the mixture before it goes through the network; None: what brings it to the level of training.
        """
        samples = len(mixture)
        mixture = np.asarray(mixture, np.float32)
        gain = self.gain("mixture", frame_powers(mixture, self.frame)) if gain is None else gain
        padded = np.pad(gain * mixture, (0, max(0, self.model.windows[0] - samples)))
        return self._extract(padded[None], embedding[None])[0].numpy()[:samples] / gain

    def __call__(self, mixture, embedding, level="projection"):
        """`estimate`, at one of LEVELS."""
        return match_level(self.estimate(mixture, embedding), mixture, level)

    def confidence(self, mixture, estimate, embedding):
        """That the talker of an embedding [embedding_dim] is in a mixture [samples], -1 to 1.

        The mean of two cosines: one alone tells less of a soft talker (mixture), or takes what the network makes up
        for the talker (estimate). Pauses are left out of both.
        """
        cosines = []
        for signal in (mixture, estimate):
            loud = loud_parts(signal, self.frame)
            theirs = self.embed(self.gain("enrolment", frame_powers(loud, self.frame)) * loud)
            lengths = np.linalg.norm(theirs) * np.linalg.norm(embedding)
            cosines.append(float(np.dot(theirs, embedding) / max(lengths, 1e-9)) if np.any(signal) else -1.0)
        return sum(cosines) / 2

    def confidence_in_windows(self, mixture, estimate, embedding, sample_rate):
        """`confidence` as nn/separate.py finds it: the highest of windows, where the recording has several."""
        hop = self.model.hop
        frames = -(-len(mixture) // hop)
        windows = Windows.of_seconds(sample_rate / hop)
        found = []
        for start in windows.starts(frames):
            first = start * hop
            pieces = [signal[first : first + windows.length * hop] for signal in (mixture, estimate)]
            found.append((np.dot(pieces[1], pieces[1]), self.confidence(*pieces, embedding)))
        return highest_confidence(found)

    def batch(self, batch):
        """The estimate [samples] of a batch of one, as of the validation set."""
        return self(batch["mixture"][0].numpy(), self.embed(batch["enrolment"][0].numpy()))


def highest_confidence(found):
    """The highest of windows in which there is something, of [(energy of the estimate, confidence)]."""
    energies, confidences = np.array(found).T
    return float(confidences[energies >= SILENT_SHARE * energies.max()].max())


class RunningLevel:
    """Scales an estimate to the share that it has in the mixture, by least squares over all samples up to each."""

    def __init__(self):
        self.shared = self.energy = 0.0

    def __call__(self, estimate, mixture):
        """The next samples of both, [samples] -> [samples]."""
        shared = self.shared + np.cumsum(np.multiply(mixture, estimate, dtype=np.float64))
        energy = self.energy + np.cumsum(np.square(estimate, dtype=np.float64))
        if len(estimate):
            self.shared, self.energy = shared[-1], energy[-1]
        return (shared / np.maximum(energy, 1e-30) * estimate).astype(np.float32)


class RunningGain:
    """What brings a recording that comes in blocks to the level of training, by what was heard of it.

    Levels are those of whole frames of `extractor.frame` samples, counted from the start, so that nothing depends on
    the blocks. `Extractor.estimate` has one gain for a whole recording instead.

    Args:
        extractor: Extractor.
        frames: how many of the last frames count.
    """

    def __init__(self, extractor, frames=6000):
        self.extractor = extractor
        self.most = frames
        self.reset()

    def reset(self):
        """Forgets the recording."""
        self.powers = np.zeros(0)
        self.rest = np.zeros(0)  # samples that are not yet a frame
        self.gains = []  # at the end of every frame but for those that `until` dropped
        self.dropped = 0

    def add(self, samples):
        """Takes the next samples, [samples]."""
        frame = self.extractor.frame
        samples = np.concatenate([self.rest, samples])
        whole = len(samples) // frame * frame
        self.rest = samples[whole:]
        for power in frame_powers(samples[:whole], frame) if whole else ():
            self.powers = np.append(self.powers, power)[-self.most :]
            self.gains.append(self._gain(self.powers))

    def until(self, ends):
        """Gains [n] by the recording up to these samples, [n], ascending, none before those of the last call.

        Infinite where all of it is 0: no level is known, and there is nothing to come out.
        """
        if not self.dropped and not self.gains:  # all of it is shorter than a frame
            return np.full(len(ends), self._gain(frame_powers(self.rest, self.extractor.frame)))
        found = np.maximum(ends // self.extractor.frame - 1, 0) - self.dropped
        gains = np.array(self.gains)[found]
        self.gains = self.gains[found[0] :]
        self.dropped += int(found[0])
        return gains

    def _gain(self, powers):
        silent = "mixture" in self.extractor.levels_db and not np.any(powers)
        return np.float32(np.inf) if silent else self.extractor.gain("mixture", powers)


class TargetTalker:
    """SpEx+ as a system of nn.systems.trained: the talker of an enrolment in recordings of any length.

    Args:
        checkpoints: {"spex_plus": prefix, or PyTorch file}.
        level: one of LEVELS, over the whole recording.
        reject: where the talker seems absent, give silence: "no", "file" if he is nowhere in it, "window" in windows.
        threshold: confidence below which he counts as absent; None: that kept beside the checkpoint.
        told: constructor arguments of the network that neither a PyTorch checkpoint nor what lies beside it tells.

    Attributes:
        confidence: that the talker is in the last recording, -1 to 1; of several windows the highest.
        threshold: None if there is none.

    Raises:
        UserError: `reject` without any threshold.
    """

    NAME = "SpEx+"
    ENROLMENT = True
    FACES = False
    CHANNELS = None
    talkers = 1
    LATENCY = "long window"
    causal = False  # of a whole recording one level is better than that of what was heard so far

    def __init__(self, checkpoints, level="projection", reject="no", threshold=None, told=None):
        source = checkpoints["spex_plus"]
        settings, config = stored_settings(source)
        model = SpexPlus(**settings | (told or {}))
        self.source = source
        readers.load_for_inference(source, "spex_plus", model)
        self.extractor = Extractor(model, config.get("levels_db"))
        self.sample_rate = config["sample_rate"]
        self.hop_size = model.hop
        self.level = level
        self.reject = reject
        stored = read_threshold(source)
        self.threshold = threshold if threshold is not None or not stored else stored["threshold"]
        if reject != "no" and self.threshold is None:
            raise UserError(
                f"--reject {reject}: no threshold beside {checkpoint.resolve(source)}; measure it with"
                " nn/spex_plus.py --is_deploy 1 --absent --set cv, or give --threshold"
            )
        self.confidence = None

    def enrol(self, enrolments, sample_rate=None):
        """Mean embedding of one or several recordings, each a path or [samples] at a sample rate in Hz.

        Raises:
            UserError: one is missing, unusable, silent or too short.
        """
        if isinstance(enrolments, (str, os.PathLike)) or hasattr(enrolments, "ndim"):
            enrolments = [enrolments]
        embeddings = []
        for given in enrolments:
            if isinstance(given, (str, os.PathLike)):
                embeddings.append(self.extractor.embed_files([given], self.sample_rate))
            else:
                samples = resample(as_waveform(given, "enrolment"), sample_rate, self.sample_rate)
                embeddings.append(self.extractor.embed_speech(samples, self.sample_rate))
        if not embeddings:
            raise UserError("no enrolment: give a recording of the wanted talker alone, --enrolment VOICE.wav")
        return np.mean(embeddings, axis=0)

    def frames(self, samples):
        return -(-samples // self.hop_size)

    def spool_bytes(self, samples):
        return 4 * samples

    def separate(self, samples, windows, spool, bar=None, enrolment=None):
        """The talker of an embedding that `enrol` gave; see nn.systems.trained."""
        frames = self.frames(len(samples))
        length = min(frames, windows.length) * self.hop_size
        pieces = range(0, len(samples), PIECE_FRAMES * self.extractor.frame)
        powers = [frame_powers(samples[i : i + pieces.step], self.extractor.frame) for i in pieces]
        gain = self.extractor.gain("mixture", np.concatenate(powers))
        found = []  # (energy, confidence) of every window

        def extracted():
            for start in windows.starts(frames):
                first = start * self.hop_size
                mixture = samples[first : first + length]
                estimate = self.extractor.estimate(mixture, enrolment, gain)
                found.append((np.dot(estimate, estimate), self.extractor.confidence(mixture, estimate, enrolment)))
                heard = self.reject != "window" or found[-1][1] >= self.threshold
                yield first, heard * estimate[None]
                if bar is not None:
                    bar.update(2)

        level, done = Level(self.level), 0
        for (estimate,) in join(extracted()):
            spool.write(estimate.astype(np.float32).data)
            level.add(estimate, samples[done : done + len(estimate)])
            done += len(estimate)
        self.confidence = highest_confidence(found)
        rejected = self.reject == "file" and self.confidence < self.threshold
        factor = 0.0 if rejected else level.factor
        spool.seek(0)
        while block := spool.read(1 << 20):
            yield np.float32(factor) * np.frombuffer(block, np.float32)[None]

    def stream(self, enrolment):
        """A models.spex_plus.streaming.StreamingExtractor of the talker of an embedding that `enrol` gave.

        Args:
            enrolment: None: of nobody, until its `set_enrolment` is told.

        Raises:
            UserError: the network is not causal, or an option needs the whole recording.
        """
        settings = self.extractor.model.settings
        if not settings["causal"] or settings["norm"] == "global":
            raise UserError(
                f"{self.source}: not causal, it looks at what is still to come; train with --causal --norm cumulative,"
                " or extract from whole recordings with nn/separate.py, --grouping auto"
            )
        if self.level not in LIVE_LEVELS:
            raise UserError(
                f"--level {self.level}: a stream does not know the peak of what is still to come; give another level"
            )
        if self.reject != "no":
            raise UserError(
                f"--reject {self.reject}: the confidence is that of windows, which a stream has not; leave it out"
            )
        if enrolment is None:
            enrolment = np.zeros(settings["embedding_dim"], np.float32)
        return StreamingExtractor(self.extractor.model, enrolment, compile_step, RunningGain(self.extractor))

    def live(self, stream, blocks):
        """Yields the talker, [1, some samples], of blocks [samples] as they come, as loud as in the mixture so far or,
        at the level "none", as the network gives him.

        What comes out does not depend on the blocks. `separate` gives the same but for levels, which it takes from the
        whole recording: here the network sees each of its frames at the gain by the last minute up to there, and a
        sample is scaled by what was heard up to it. And `separate` has the network begin anew in every window.
        """
        level = RunningLevel() if self.level == "projection" else lambda talker, mixture: talker
        waiting = np.zeros(0, np.float32)
        for block in blocks:
            waiting = np.concatenate([waiting, block])
            (talker,) = stream.step(block)
            yield level(talker, waiting[: len(talker)])[None]
            waiting = waiting[len(talker) :]
        (talker,) = stream.flush()
        yield level(talker, waiting)[None]
