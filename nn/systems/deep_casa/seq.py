"""The second stage of Deep CASA, sequential grouping: objective, training and inference."""

import numpy as np
import tensorflow as tf
from absl import flags
from keras import ops

from feat.base.files import UserError
from feat.base.graph import compiled
from feat.batches import common
from feat.signals.stft import istft
from models import losses
from models.deep_casa import grouping
from models.deep_casa.dense_unet import leading_frames, output_size
from nn.checkpoints import readers
from nn.recordings.outputs import checkpoint_to_use
from nn.systems.deep_casa import clustering
from nn.systems.deep_casa import training as deep_casa
from nn.training import devices

FLAGS = flags.FLAGS


class SequentialGroupingObjective:
    """Objective of the second stage: embeddings of frames whose order agrees should agree.

    Args:
        model: SequentialGrouping.
        parity: the logged cost averages over padding too, as in the original.
        simul_model: trained DenseUNet that makes the estimates of batches that hold none.
    """

    def __init__(self, model, parity=False, simul_model=None):
        self.model = model
        self.parity = parity
        self.simul_model = simul_model

    def estimates(self, batch):
        """Unordered estimates of the first stage, [B, C, T, F, 2]."""
        if "estimates" in batch:
            return batch["estimates"]
        return ops.stop_gradient(self.simul_model(batch["mixture"], training=False))

    def embed(self, batch, training=False):
        """(estimates, costs [B, T, C!], embeddings [B, T, embeddings a frame, D])."""
        estimates = self.estimates(batch)
        size = 2 * output_size(self.model.bins, self.model.scales)
        costs = losses.frame_costs(estimates, batch["sources"], size)
        return estimates, costs, self.model((batch["mixture"], estimates), training=training)

    def __call__(self, batch, training=False):
        """(loss [batch], {"cost": [batch]})."""
        estimates, costs, embeddings = self.embed(batch, training)
        # Padding has no weight of its own: its estimates and references are 0.
        mask = None if self.parity else losses.frame_mask(batch["frames"], ops.shape(costs)[1])
        assignment, weights = losses.grouping_targets(costs, mask)
        labels = grouping.embedding_labels(assignment, self.model.talkers)
        batch_size, frames, per_frame, _ = ops.shape(embeddings)
        rows = (batch_size, frames * per_frame)
        loss = losses.grouping_loss(
            ops.reshape(embeddings, (*rows, -1)),
            ops.reshape(labels, (*rows, -1)),
            ops.repeat(weights, per_frame, axis=1),
        )
        leading = leading_frames(frames, self.model.scales, self.model.causal) if self.parity else None
        return loss, {"cost": losses.mean_frame_cost(costs, batch["frames"], leading)}


def make_objective(model):
    """The objective that the flags ask for."""
    if not FLAGS.simul_model:
        if FLAGS.on_the_fly or FLAGS.dynamic_mixing:
            raise UserError(
                "--on_the_fly and --dynamic_mixing need --simul_model, the checkpoint of the trained first stage"
            )
        return SequentialGroupingObjective(model, FLAGS.parity)
    simul_model = deep_casa.load_dense_unet(FLAGS.simul_model)
    return SequentialGroupingObjective(model, FLAGS.parity, simul_model)


def train_stage():
    """--is_deploy 0"""
    strategy = devices.make_strategy()
    deep_casa.train_stage(
        strategy,
        "sequential_grouping",
        lambda: deep_casa.make_grouping(tap_keep=FLAGS.keep_prob),
        make_objective,
        lambda objective: Decoder(objective, FLAGS.seed),
        deep_casa.TrainingData(with_estimates=not FLAGS.on_the_fly),
        patience=3.9,
        score="loss",
        higher_is_better=False,
        worst_score=1000.0,
    )


class Decoder:
    """Network, clustering and inverse STFT of one utterance.

    Args:
        objective: SequentialGroupingObjective.
        seed: of the k-means.
    """

    def __init__(self, objective, seed=0):
        self.objective = objective
        self.seed = seed
        self.clustering = grouping.OnlineClustering(objective.model.talkers)
        self._functions = {}

    def assignment(self, mixture, estimates, embeddings):
        """Permutation index of every frame, [frames].

        Args:
            mixture: [frames, bins, 2].
            estimates: [talkers, frames, bins, 2].
            embeddings: [frames, embeddings a frame, D].
        """
        if not self.objective.model.causal:
            return clustering.whole_file_assignment(embeddings, estimates, self.seed)
        energies = np.sum(np.square(mixture), axis=(-2, -1))
        return self._online(tf.constant(embeddings), tf.constant(energies)).numpy()

    @property
    def _online(self):
        def online(embeddings, energies):
            state = self.clustering.initial_state(embeddings.shape[-1])
            return self.clustering.assign(state, embeddings, energies)[1]

        if "online" not in self._functions:
            per_frame, dimension = self.objective.model.per_frame, self.objective.model.embedding_dim
            self._functions["online"] = compiled(
                online, tf.TensorSpec([None, per_frame, dimension], tf.float32), tf.TensorSpec([None], tf.float32)
            )
        return self._functions["online"]

    def __call__(self, batch):
        """Decodes a batch of one utterance.

        Returns:
            dict of NumPy arrays: estimates in talker order [C, T, F, 2], assign [T], oracle [T] and
            weight [T], the weight of the frame in the objective.
        """
        if "embed" not in self._functions:

            def embed(batch):
                estimates, costs, embeddings = self.objective.embed(batch)
                oracle, weights = losses.grouping_targets(costs)
                return estimates[0], embeddings[0], oracle[0], weights[0]

            self._functions["embed"] = compiled(embed, common.free_lengths(batch))
        estimates, embeddings, oracle, weight = (x.numpy() for x in self._functions["embed"](batch))
        assign = self.assignment(batch["mixture"][0].numpy(), estimates, embeddings)
        return {
            "unordered": estimates,
            "estimates": clustering.permute(estimates, assign),
            "assign": assign.astype(np.int32),
            "oracle": oracle.astype(np.int32),
            "weight": weight,
        }


def to_signals(spectra, samples, fft_size, hop_size, parity):
    """Real and imaginary [C, T, F, 2] -> [C, samples] by the inverse STFT in double precision."""
    return istft(spectra[..., 0] + 1j * spectra[..., 1], samples, fft_size, hop_size, parity)


def infer():
    """--is_deploy 1: separates the tt list."""
    prefix = checkpoint_to_use()
    model = deep_casa.make_grouping(prefix)
    readers.load_for_inference(prefix, "sequential_grouping", model)
    objective = make_objective(model)
    decode = Decoder(objective, FLAGS.seed)
    utterances = deep_casa.utterances_of_flags("tt", with_estimates=not FLAGS.on_the_fly)

    def separate(batch, samples):
        decoded = decode(batch)
        outputs = to_signals(decoded["estimates"], samples, FLAGS.fft_size, FLAGS.hop_size, FLAGS.parity)
        return outputs, {key: decoded[key] for key in ("assign", "oracle", "weight")}

    sources = [prefix, *filter(None, [FLAGS.simul_model])]
    deep_casa.separate_utterances(utterances, f"exp/{FLAGS.exp_name}/output_tt/files", sources, separate)
