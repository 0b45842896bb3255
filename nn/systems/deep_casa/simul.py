"""The first stage of Deep CASA, simultaneous grouping: objective, training, inference and export."""

import glob
import os

import numpy as np
import tensorflow as tf
from absl import flags
from keras import ops

from feat.base.files import UserError, make_writable_directory, require_free_bytes, size_text, write_text
from feat.base.graph import compiled
from feat.base.parallel import progress
from feat.batches import common
from feat.batches import deep_casa as dataset
from feat.corpora import cache
from feat.corpora.features import settings_from_flags
from models import losses
from models.deep_casa.dense_unet import frequency_padding, leading_frames, output_size
from models.layers import spectral
from nn.checkpoints import ours as checkpoint
from nn.checkpoints import readers
from nn.recordings.outputs import checkpoint_to_use, fit_length
from nn.systems.deep_casa import training as deep_casa
from nn.training import devices

FLAGS = flags.FLAGS


class SimultaneousGrouping:
    """Objective of the first stage: the SNR of the estimates after choosing their order.

    Args:
        model: DenseUNet.
        fft_size, hop_size: samples.
        pit: "frame" chooses the order in every frame (tPIT), "utterance" once (uPIT).
        parity: the window sum of the inverse STFT counts padding frames and is not held away from zero,
            and the logged cost averages over padding too, as in the original.
    """

    def __init__(self, model, fft_size=256, hop_size=64, pit="frame", parity=False):
        self.model = model
        self.fft_size = fft_size
        self.hop_size = hop_size
        self.pit = pit
        self.parity = parity

    def frame_costs(self, estimates, sources):
        """[batch, frames, talkers!]; the mean counts the dummy bins of the original."""
        return losses.frame_costs(estimates, sources, 2 * output_size(self.model.bins, self.model.scales))

    def separate(self, batch, training=False):
        """Estimates, their best order in each frame, and signals in talker order.

        Returns:
            (estimates [B, C, T, F, 2], costs [B, T, C!], signals [B, C, samples]).
        """
        estimates = self.model(batch["mixture"], training=training)
        costs = self.frame_costs(estimates, batch["sources"])
        ordered = estimates
        if self.pit == "frame":
            ordered = losses.permute_frames(estimates, losses.frame_assignment(costs))
        return estimates, costs, self.to_signals(ordered, batch["frames"])

    def to_signals(self, spectra, frames):
        """[B, C, T, F, 2] -> [B, C, samples]."""
        if self.parity:
            return spectral.istft(
                spectra, self.fft_size, self.hop_size, frames_before=self.leading(spectra[:, 0]), parity=True
            )
        mask = losses.frame_mask(frames, ops.shape(spectra)[2])
        return spectral.istft(spectra, self.fft_size, self.hop_size, frame_mask=mask)

    def leading(self, x):
        """In parity, how many zero frames the original puts before x [batch, frames, ...]; else None."""
        if self.parity:
            return leading_frames(ops.shape(x)[1], self.model.scales, self.model.causal)

    def __call__(self, batch, training=False):
        """(loss [batch], {"snr": [batch] dB, "cost": [batch]})."""
        _, costs, signals = self.separate(batch, training)
        if self.pit == "frame":
            snr = ops.mean(losses.snr(signals, batch["waveforms"]), axis=-1)
        else:
            snr = losses.utterance_pit_snr(signals, batch["waveforms"])
        return -snr, {"snr": snr, "cost": losses.mean_frame_cost(costs, batch["frames"], self.leading(costs))}


class OracleDecoder:
    """Estimates of one utterance in the order that its references choose, as NumPy arrays."""

    def __init__(self, objective):
        self.objective = objective
        self._separate = None

    def __call__(self, batch):
        """Batch of one utterance -> {"unordered", "estimates": [C, T, F, 2], "signals": [C, samples]}."""
        if self._separate is None:

            def separate(batch):
                estimates, costs, signals = self.objective.separate(batch)
                ordered = losses.permute_frames(estimates, losses.frame_assignment(costs))
                return {"unordered": estimates[0], "estimates": ordered[0], "signals": signals[0]}

            self._separate = compiled(separate, common.free_lengths(batch))
        return {key: value.numpy() for key, value in self._separate(batch).items()}


def make_objective(model):
    """The objective that the flags ask for."""
    return SimultaneousGrouping(model, FLAGS.fft_size, FLAGS.hop_size, FLAGS.pit, FLAGS.parity)


def train_stage():
    """--is_deploy 0"""
    strategy = devices.make_strategy()
    segment_frames = FLAGS.batch_frames if FLAGS.causal and not FLAGS.dynamic_mixing else 0
    deep_casa.train_stage(
        strategy,
        "dense_unet",
        lambda: deep_casa.make_dense_unet(keep_prob=FLAGS.keep_prob),
        make_objective,
        OracleDecoder,
        deep_casa.TrainingData(segment_frames=segment_frames),
        patience=5.9,
        whole=bool(segment_frames),
        config={"pit": FLAGS.pit},
        score="snr",
        higher_is_better=True,
        worst_score=-100.0,
    )


def load_model():
    """The trained model and its objective, for inference."""
    prefix = checkpoint_to_use()
    stored = (checkpoint.read_config(prefix) or {}).get("pit", FLAGS.pit)
    if FLAGS["pit"].present and FLAGS.pit != stored:
        raise UserError(f"{prefix}: trained with --pit {stored}, but --pit {FLAGS.pit} was given; leave it out")
    FLAGS.pit = stored
    model = deep_casa.make_dense_unet(prefix)
    readers.load_for_inference(prefix, "dense_unet", model)
    return prefix, make_objective(model)


def infer():
    """--is_deploy 1: separates the tt list."""
    prefix, objective = load_model()
    folder = "oracle_order" if FLAGS.pit == "frame" else "files"
    decode = OracleDecoder(objective)
    deep_casa.separate_utterances(
        deep_casa.utterances_of_flags("tt"),
        f"exp/{FLAGS.exp_name}/output_tt/{folder}",
        [prefix],
        lambda batch, samples: (fit_length(decode(batch)["signals"], samples), {}),
    )


def export():
    """--is_deploy 2: writes the unordered estimates of tr, cv and tt beside the features."""
    prefix, objective = load_model()
    model = objective.model
    settings = settings_from_flags()
    make_writable_directory(settings.feat_folder)
    sets = {name: deep_casa.utterances_of_flags(name) for name in FLAGS.export_sets}
    marker = os.path.join(settings.feat_folder, "simul_est.txt")
    source = readers.fingerprint(prefix) + "\n"
    if not os.path.exists(marker) or open(marker, encoding="utf-8").read() != source:
        # Estimates of another checkpoint must not be taken for ours, in whatever set or list they are.
        for path in glob.glob(cache.estimate_path(glob.escape(settings.feat_folder), "*", "*")):
            os.remove(path)
        write_text(marker, source)
    _, (before, after) = frequency_padding(model.bins, model.scales)
    rows = model.bins + before + after

    def shape(frames):
        leading = leading_frames(int(frames), model.scales, model.causal)
        return (model.talkers, int(frames) + leading, 2 * rows)

    def is_current(utterances, i):
        name = utterances.names[i]
        path = cache.estimate_path(settings.feat_folder, utterances.set_name, name)
        return cache.array_shape(path) == shape(utterances.frames[i]) and not cache.is_older(
            path, utterances.files(name)
        )

    todo = {
        set_name: utterances.some(i for i in range(len(utterances)) if not is_current(utterances, i))
        for set_name, utterances in sets.items()
    }
    needed = sum(4 * int(np.prod(shape(frames))) for missing in todo.values() for frames in missing.frames)
    count = sum(map(len, todo.values()))
    print(f"{settings.feat_folder}: {count} estimates to write, {size_text(needed)}")
    require_free_bytes(settings.feat_folder, needed, "the estimates")
    spectra = tf.TensorSpec([1, None, settings.bins, 2])
    forward = compiled(lambda mixture: model(mixture), spectra)
    for set_name, missing in todo.items():
        if not len(missing):
            continue
        make_writable_directory(os.path.join(settings.feat_folder, set_name))
        names = progress(missing.names, f"export {set_name}", unit="mixture")
        for name, batch in zip(names, dataset.evaluate(missing)):
            estimates = forward(batch["mixture"])[0].numpy()  # [C, T, F, 2]
            leading = leading_frames(estimates.shape[1], model.scales, model.causal)
            padded = np.pad(estimates, [(0, 0), (leading, 0), (before, after), (0, 0)])
            path = cache.estimate_path(settings.feat_folder, set_name, name)
            cache.write_array(path, padded.reshape(*padded.shape[:2], -1))
    print(f"{settings.feat_folder}: estimates of {prefix} are complete")
