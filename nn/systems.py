"""Trained systems as nn/separate.py, nn/demo.py, nn/live.py and nn/export.py use them.

SYSTEMS says which class takes the checkpoints of which system. Such a class is called with {system: prefix} and the
options that it lists, and has

    NAME            for messages
    CHECKPOINTS     names of the systems whose checkpoints make one of these
    OPTIONS         names of further arguments; nn/separate.py has flags of these names, nn/live.py of some
    ENROLMENT       whether it extracts the talker of an enrolment, which `separate` is then given
    FACES           whether it goes by the faces of a video, whose `embeddings` `separate` is then given too
    sample_rate     Hz of what it takes and gives
    hop_size        samples of a frame; windows are counted in frames
    talkers         how many come out
    CHANNELS        of a recording that go in together, and come out for every talker: 2 where these are a left and a
                    right ear; None for systems of one channel, [samples] below, where else [CHANNELS, samples] stands
    causal          whether nn/separate.py goes from block to block, with `live`, unless it is told otherwise
    frames(samples), spool_bytes(samples)
                    what a recording of so many samples will be: frames, and bytes to spool
    separate(samples, windows, spool, bar, enrolment)
                    yields float32 [talkers, some samples], one after the other as many as there are in `samples`
                    ([samples] at sample_rate, an array or anything that has a shape and gives slices), in memory that
                    does not depend on their number; `windows` is a nn.windows.Windows, `spool` a binary file open for
                    writing and reading, `bar` a progress bar that is told of every window twice
    LATENCY         what the algorithmic latency comes from
    stream(enrolment)
                    a models.streaming_blocks.WaveformStream; raises UserError if the system is not causal. One that
                    needs an enrolment has `set_enrolment` too, and takes None here, for nobody yet
    live(stream, blocks)
                    yields float32 [talkers, some samples] of blocks [samples] that go through such a stream
"""

import os
import time

import numpy as np
import tensorflow as tf
from absl import flags

from feat.files import UserError
from feat.graph import compiled
from feat.stft import istft, num_samples, stft_planes
from models.dense_unet import DenseUNet
from models.grouping import SequentialGrouping
from models.streaming import StreamingSeparator
from nn import checkpoint, clustering
from nn.audio_visual import AudioVisual
from nn.binaural import Binaural
from nn.diffusion import Diffusion
from nn.extraction import TargetTalker
from nn.streams import add_up, compile_step, stream_through
from nn.windows import join, piece

FLAGS = flags.FLAGS


class DeepCasa:
    """Both stages of Deep CASA on windows of one length: spectra and embeddings, then talkers for the whole file.

    A first stage that was trained with --pit utterance needs no second one.

    Args:
        checkpoints: {system name: prefix}.
        seed: of the clustering.
    """

    NAME = "Deep CASA"
    CHECKPOINTS = ("dense_unet", "sequential_grouping")
    OPTIONS = ("seed",)
    ENROLMENT = False
    FACES = False
    CHANNELS = None
    LATENCY = "window"

    def __init__(self, checkpoints, seed=0):
        if "dense_unet" not in checkpoints:
            (prefix,) = checkpoints.values()
            raise UserError(f"{prefix}: the second stage alone; give the checkpoint of the first stage too")
        config = self._config(checkpoints["dense_unet"])
        self.unet = DenseUNet(**config["model"])
        checkpoint.load_for_inference(checkpoints["dense_unet"], "dense_unet", self.unet)
        self.grouping = None
        if "sequential_grouping" in checkpoints:
            theirs = self._config(checkpoints["sequential_grouping"])
            for name in ("sample_rate", "fft_size", "hop_size"):
                if theirs[name] != config[name]:
                    raise UserError(
                        f"{checkpoints['sequential_grouping']}: {name} is {theirs[name]}, that of the first stage"
                        f" {config[name]}; give stages that were trained together"
                    )
            self.grouping = SequentialGrouping(**theirs["model"])
            checkpoint.load_for_inference(checkpoints["sequential_grouping"], "sequential_grouping", self.grouping)
        elif config.get("pit", "frame") == "frame":
            raise UserError(
                f"{checkpoints['dense_unet']}: the first stage alone, trained frame by frame; give the checkpoint of"
                " the second stage too: --resume_model PREFIX1 --resume_model PREFIX2"
            )
        self.sample_rate = config["sample_rate"]
        self.fft_size, self.hop_size = config["fft_size"], config["hop_size"]
        self.talkers = self.unet.talkers
        self.seed = seed
        models = {"dense_unet": self.unet, "sequential_grouping": self.grouping}
        self.not_causal = [checkpoints[name] for name, model in models.items() if model and not model.causal]
        self.causal = not self.not_causal
        spec = tf.TensorSpec([1, None, self.unet.bins, 2])
        self._forward = compiled(self._networks, spec)

    def stream(self, enrolment=None):
        """A models.streaming.StreamingSeparator. Raises UserError unless both stages are causal."""
        if self.not_causal:
            raise UserError(
                f"{self.not_causal[0]}: not causal, it looks at what is still to come; train both stages with --causal,"
                " or separate whole recordings with nn/separate.py --grouping kmeans"
            )
        return StreamingSeparator(self.unet, self.grouping, self.fft_size, self.hop_size, compile_step)

    def live(self, stream, blocks):
        """Yields the talkers, [talkers, some samples], of blocks [samples] as they come; they sum to the recording."""
        return (add_up(talkers, mixture) for talkers, mixture in stream_through(stream, blocks))

    @staticmethod
    def _config(prefix):
        checkpoint.require(prefix)
        config = checkpoint.read_config(prefix)
        if config is None:
            raise UserError(
                f"{checkpoint.resolve(prefix)}: no config.json beside it, as beside the original's checkpoints; infer"
                " with nn/simul_group.py and nn/seq_group.py, whose flags give the sizes"
            )
        return config

    def frames(self, samples):
        """Of the silence before a recording, and of it up to behind its end."""
        return -(-(samples + self.fft_size) // self.hop_size) + 1

    def spool_bytes(self, samples):
        """Of the spectra of all windows, which overlap."""
        return int(1.4 * 4 * samples * 2 * self.talkers * self.fft_size / self.hop_size)

    def separate(self, samples, windows, spool, bar=None, enrolment=None):
        """Talkers that sum to the recording, in the same places in all windows; see above.

        Networks see one window after the other, then the embeddings of all windows are clustered together.
        """
        hop = self.hop_size
        # Silence around the recording, so that its ends are seen by as many frames as all else.
        lead = self.fft_size
        frames = self.frames(len(samples))
        starts = windows.starts(frames)
        length = num_samples(min(frames, windows.length), self.fft_size, hop)
        grouped = clustering.WindowClustering(self.talkers, self.seed)
        shape = None
        for start in starts:
            estimates, embeddings = self.analyse(piece(samples, start * hop - lead, length))
            shape = estimates.shape
            spool.write(estimates.data)
            if self.grouping is not None:
                grouped.add(start, estimates, embeddings)
            if bar is not None:
                bar.update()
        spool.seek(0)
        orders = grouped.orders() if self.grouping is not None else None

        def synthesised():
            for i, start in enumerate(starts):
                estimates = np.frombuffer(spool.read(4 * int(np.prod(shape))), np.float32).reshape(shape)
                order = np.zeros(shape[1], np.int64) if orders is None else orders[i]
                yield start * hop, self.synthesise(estimates, order)
                if bar is not None:
                    bar.update()

        done = -lead
        for signals in join(synthesised(), match=orders is None):
            first, last = max(done, 0), max(0, min(done + signals.shape[1], len(samples)))
            yield add_up(signals[:, first - done : last - done], samples[first:last])
            done += signals.shape[1]

    def _networks(self, mixture):
        estimates = self.unet(mixture)
        if self.grouping is None:
            return estimates, tf.zeros((1, tf.shape(mixture)[1], 1, 1))
        return estimates, self.grouping((mixture, estimates))

    def analyse(self, window):
        """[samples] -> (estimates [C, T, F, 2], embeddings [T, embeddings a frame, D]), float32."""
        planes = stft_planes(window[None], self.fft_size, self.hop_size)  # [1, 2, T, F]
        estimates, embeddings = self._forward(np.moveaxis(planes, 1, -1))
        return estimates[0].numpy(), embeddings[0].numpy()

    def synthesise(self, estimates, order):
        """Estimates [C, T, F, 2] and permutation indices [T] -> [C, samples]."""
        ordered = clustering.permute(estimates, order)
        return istft(ordered[..., 0] + 1j * ordered[..., 1], None, self.fft_size, self.hop_size, parity=False)


SYSTEMS = {
    name: kind for kind in (DeepCasa, TargetTalker, Binaural, AudioVisual, Diffusion) for name in kind.CHECKPOINTS
}


def find_checkpoints(given):
    """{system: prefix} of prefixes, or of folders, see nn.checkpoint.find_best.

    Raises:
        UserError: there is none, there are several of one system, or they do not belong together.
    """
    systems = {}
    for prefix in checkpoint.find_best(given):
        system = checkpoint.open_reader(prefix).system
        if system not in SYSTEMS:
            raise UserError(f"{prefix}: holds {system}, which cannot separate; give one of {', '.join(SYSTEMS)}")
        if system in systems:
            raise UserError(
                f"{prefix} and {systems[system]} are both of {system}; name the one to take: --resume_model PREFIX"
            )
        systems[system] = prefix
    kinds = {SYSTEMS[system]: prefix for system, prefix in systems.items()}
    if len(kinds) > 1:
        raise UserError(f"{' and '.join(kinds.values())} are of different systems; give the checkpoints of one")
    return systems


def enrol(system, enrolments, sample_rate=None):
    """The voice that a system extracts, for its `separate` and `stream`; None where it takes all talkers apart.

    Args:
        enrolments: recordings of the wanted talker, one or several: paths, or [samples] at a sample rate in Hz.

    Raises:
        UserError: there are none and the system needs them, or the other way round, or one is of no use.
    """
    several = not isinstance(enrolments, (str, os.PathLike, np.ndarray))
    given = enrolments is not None and not (several and len(enrolments) == 0)
    if system.ENROLMENT:
        if not given:
            raise UserError("no enrolment: give a recording of the wanted talker alone, --enrolment VOICE.wav")
        return system.enrol(enrolments, sample_rate)
    if given:
        raise UserError(f"--enrolment: {system.NAME} takes all talkers apart and needs none; leave it out")
    return None


def make_system(checkpoints, **options):
    """The system of {system: prefix}, as of `find_checkpoints`; `options` are those that its class lists."""
    return SYSTEMS[next(iter(checkpoints))](checkpoints, **options)


def options_of_flags(system):
    """Options of a system from those flags that the script has.

    Raises:
        UserError: one was given and is another system's.
    """
    options = {}
    for name in dict.fromkeys(option for kind in SYSTEMS.values() for option in kind.OPTIONS):
        if name not in FLAGS:
            continue
        if name in SYSTEMS[system].OPTIONS:
            options[name] = FLAGS[name].value
        elif FLAGS[name].present:
            raise UserError(f"--{name}: {SYSTEMS[system].NAME} has no use for it; leave it out")
    return options


# Streams ------------------------------------------------------------------------------------------


class Stopwatch:
    """The stream of a system, and the seconds that its steps take.

    Args:
        voice: what `enrol` gave; None: `begin` is told.

    Attributes:
        samples: that have gone through.
        spent, worst: seconds, of all steps and of the longest.
    """

    def __init__(self, system, voice=None):
        self.system = system
        self.stream = stream = system.stream(voice)
        self.reset, self.flush, self.latency, self.inputs = stream.reset, stream.flush, stream.latency, stream.inputs
        self.spent = self.worst = 0.0
        self.samples = 0

    def begin(self, voice):
        """Forgets the recording; the next is of this voice, what `enrol` gave."""
        if self.system.ENROLMENT:
            self.stream.set_enrolment(voice)
        self.reset()

    def warm_up(self, block=0):
        """Compiles it before the first `block` of samples comes."""
        # The first frame goes alone, the rest together.
        silence = np.zeros(self.latency + max(self.stream.hop_size, block), np.float32)
        self.stream.step(silence if self.inputs is None else np.tile(silence, (self.inputs, 1)))
        self.reset()

    def step(self, samples):
        start = time.perf_counter()
        talkers = self.stream.step(samples)
        spent = time.perf_counter() - start
        self.spent += spent
        self.samples += samples.shape[-1]
        self.worst = max(self.worst, spent)
        return talkers

    def say_latency(self, block_seconds=None):
        """The algorithmic latency, of the system alone or with blocks of so many seconds."""
        window = 1e3 * self.latency / self.system.sample_rate
        if block_seconds is None:
            return f"latency {window:.1f} ms ({self.system.LATENCY} of {self.latency} samples)"
        block = 1e3 * block_seconds
        return (
            f"latency {window + block:.1f} ms: {self.system.LATENCY} {window:.1f} ms ({self.latency} samples), block"
            f" {block:.1f} ms"
        )

    def say_speed(self):
        """How many seconds went through, and the time that it took as a share of these."""
        heard = self.samples / self.system.sample_rate
        return f"{heard:.1f} s, real-time factor {self.spent / max(heard, 1e-9):.2f}"
