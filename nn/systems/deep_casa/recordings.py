"""Deep CASA on any recording: both stages, window by window or as a stream."""

import numpy as np
import tensorflow as tf

from feat.base.files import UserError
from feat.base.graph import compiled
from feat.signals.stft import istft, num_samples, stft_planes
from models.deep_casa.dense_unet import DenseUNet
from models.deep_casa.grouping import SequentialGrouping
from models.deep_casa.streaming import StreamingSeparator
from nn.checkpoints import ours as checkpoint
from nn.checkpoints import readers
from nn.recordings.streams import add_up, compile_step, stream_through
from nn.recordings.windows import join, piece
from nn.systems.deep_casa import clustering


class DeepCasa:
    """Both stages of Deep CASA on windows of one length: spectra and embeddings, then talkers for the whole file.

    A first stage that was trained with --pit utterance needs no second one.

    Args:
        checkpoints: {system name: prefix}.
        seed: of the clustering.
    """

    NAME = "Deep CASA"
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
        readers.load_for_inference(checkpoints["dense_unet"], "dense_unet", self.unet)
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
            readers.load_for_inference(checkpoints["sequential_grouping"], "sequential_grouping", self.grouping)
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
        """A models.deep_casa.streaming.StreamingSeparator. Raises UserError unless both stages are causal."""
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
