"""Sequential grouping, the second stage of Deep CASA: a TCN embeds frames, clustering tells the talkers apart.

With two talkers each frame has one embedding, which says whether the order of the two estimates is kept or
swapped, as in the original. With C > 2 talkers there are C! orders and clusters of orders could not be named,
so each frame has C embeddings, one an estimate, and a cluster is a talker.

Sources: Liu and Wang, TASLP 27 (2019) and TASLP 28 (2020); reference repository yuzhou-git/deep-casa.
"""

import keras
import numpy as np
from keras import ops

from models.conv import DenseConv2D, DilatedDepthwiseConv1D, PointwiseConv
from models.dense_unet import frequency_padding, leading_frames
from models.losses import permutation_costs, permutations
from models.norm import CumulativeNorm, GlobalNorm

FEATURE_MAPS = 16
FEATURE_LAYERS = 4


@keras.saving.register_keras_serializable("deep_casa")
class ResidualBlock(keras.layers.Layer):
    """Point-wise, dilated depthwise and point-wise convolution with PReLU and norm, around a skip.

    Input and output: [batch, frames, bottleneck].
    """

    def __init__(self, units, dilation, causal=False, tap_keep=1.0, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.settings = dict(units=units, dilation=dilation, causal=causal, tap_keep=tap_keep)
        norm = CumulativeNorm if causal else GlobalNorm
        self.expand = PointwiseConv(units, name="expand")
        self.expand_prelu = keras.layers.PReLU(shared_axes=[1], name="expand_prelu")
        self.expand_norm = norm(name="expand_norm")
        self.depthwise = DilatedDepthwiseConv1D(dilation, causal, tap_keep, seed, name="depthwise")
        self.depthwise_prelu = keras.layers.PReLU(shared_axes=[1], name="depthwise_prelu")
        self.depthwise_norm = norm(name="depthwise_norm")
        self.units = units

    def build(self, input_shape):
        self.reduce = PointwiseConv(input_shape[-1], name="reduce")
        self.reduce.build((*input_shape[:-1], self.units))

    def call(self, x, training=False):
        y = self.expand_norm(self.expand_prelu(self.expand(x)))
        y = self.depthwise_norm(self.depthwise_prelu(self.depthwise(y, training=training)))
        return x + self.reduce(y)

    def get_config(self):
        return super().get_config() | self.settings


@keras.saving.register_keras_serializable("deep_casa")
class SequentialGrouping(keras.Model):
    """Embeds every frame of a mixture and its unordered estimates.

    Call: (mixture [batch, frames, bins, 2], estimates [batch, talkers, frames, bins, 2]) ->
    [batch, frames, embeddings a frame, embedding_dim], where embeddings a frame is 1 for two talkers and
    `talkers` for more. The zero frames and bins that the original adds are added and removed inside; the
    norms see them.

    Args:
        talkers: number of estimates.
        bins: frequency bins of the STFT.
        blocks: repetitions of the series of dilations; the outputs of all blocks are summed.
        dilations: residual blocks in a series, with dilation 1, 2, 4, ...
        units: channels inside a residual block.
        bottleneck: channels between residual blocks.
        embedding_dim: size of an embedding.
        causal: cumulative norms and convolutions over past frames.
        tap_keep: probability of keeping each outer tap of the dilated filters in training.
        scales: depth of the Dense-UNet whose padding is reproduced.
        seed: of the dropped taps.
    """

    def __init__(
        self,
        talkers=2,
        bins=129,
        blocks=4,
        dilations=7,
        units=512,
        bottleneck=256,
        embedding_dim=40,
        causal=False,
        tap_keep=0.7,
        scales=4,
        seed=None,
        **kwargs,
    ):
        super().__init__(**{"name": "sequential_grouping"} | kwargs)
        self.settings = dict(
            talkers=talkers,
            bins=bins,
            blocks=blocks,
            dilations=dilations,
            units=units,
            bottleneck=bottleneck,
            embedding_dim=embedding_dim,
            causal=causal,
            tap_keep=tap_keep,
            scales=scales,
        )
        self.talkers = talkers
        self.bins = bins
        self.causal = causal
        self.scales = scales
        self.per_frame = 1 if talkers == 2 else talkers
        self.embedding_dim = embedding_dim
        self.seed_generator = keras.random.SeedGenerator(seed)
        norm = CumulativeNorm if causal else GlobalNorm
        self.feature_convs = [
            DenseConv2D(FEATURE_MAPS, (1, 3), ((0, 0), (1, 1)), name=f"feature_{i}") for i in range(FEATURE_LAYERS)
        ]
        self.feature_norms = [norm(name=f"feature_norm_{i}") for i in range(FEATURE_LAYERS)]
        self.input_conv = PointwiseConv(bottleneck, name="input")
        self.input_norm = norm(name="input_norm")
        self.residuals = [
            [
                ResidualBlock(units, 2**j, causal, tap_keep, self.seed_generator, name=f"block_{i}_{2**j}")
                for j in range(dilations)
            ]
            for i in range(blocks)
        ]
        self.block_scales = [
            self.add_weight(
                shape=(1,), initializer="ones" if i == blocks - 1 else "zeros", name=f"block_scale_{i}"
            )
            for i in range(blocks)
        ]
        self.embed = PointwiseConv(embedding_dim * self.per_frame, name="embed")
        self((keras.KerasTensor((1, None, bins, 2)), keras.KerasTensor((1, talkers, None, bins, 2))))

    def call(self, inputs, training=False):
        mixture, estimates = inputs
        leading = leading_frames(ops.shape(mixture)[1], self.scales, self.causal)
        _, bins = frequency_padding(self.bins, self.scales)
        # [B, T, F, 3 (1 + C)]: real, imaginary and magnitude of the mixture, then of each estimate.
        spectra = [mixture, *ops.unstack(estimates, axis=1)]
        magnitudes = [ops.sqrt(ops.sum(ops.square(x), axis=-1, keepdims=True)) for x in spectra]
        x = ops.concatenate([part for pair in zip(spectra, magnitudes) for part in pair], axis=-1)
        x = ops.pad(x, ((0, 0), (leading, 0), bins, (0, 0)))
        maps = [x]
        for conv, norm in zip(self.feature_convs, self.feature_norms):
            x = norm(ops.elu(conv(maps)))
            maps.append(x)
        batch, frames = ops.shape(x)[:2]
        x = ops.reshape(x, (batch, frames, (self.bins + sum(bins)) * FEATURE_MAPS))
        x = self.input_norm(self.input_conv(x))
        total = 0.0
        for blocks, scale in zip(self.residuals, self.block_scales):
            for block in blocks:
                x = block(x, training=training)
            total = total + x * scale
        embeddings = ops.tanh(ops.cast(self.embed(total), "float32"))[:, leading:]
        return ops.reshape(
            embeddings, (batch, frames - leading, self.per_frame, self.embedding_dim)
        )  # [B, T, embeddings a frame, D]

    def get_config(self):
        return super().get_config() | self.settings


def embedding_labels(assignment, talkers):
    """Permutation indices [batch, frames] -> one-hot labels [batch, frames, embeddings a frame, classes].

    Two talkers: class 0 keeps the order, 1 swaps it. More: the class of estimate i is its talker.
    """
    if talkers == 2:
        return ops.one_hot(assignment, 2)[:, :, None]
    return ops.take(ops.convert_to_tensor(np.eye(talkers, dtype="float32")[permutations(talkers)]), assignment, axis=0)


class OnlineClustering:
    """Causal grouping: every frame is assigned from itself and the past. One per stream.

    Two talkers (spec of the original): two queues hold the newest `queue_size` embeddings, one queue an
    order of the estimates. A frame goes to the queue whose mean has the larger inner product with it; the
    second queue opens at the first frame whose inner product with the frame before is below `similarity`.
    Only frames louder than `energy_share` of the loudest so far enter a queue that is already open.

    More talkers: a queue a talker, all opened by the first frame; the order of a frame's estimates is the
    one with the largest sum of inner products.

    Args:
        talkers: number of talkers.
        queue_size: embeddings kept in a queue.
        similarity: threshold on the inner product of neighbouring embeddings.
        energy_share: threshold on the energy, as a share of the largest so far.
    """

    def __init__(self, talkers=2, queue_size=10, similarity=0.5, energy_share=0.3):
        self.talkers = talkers
        self.queue_size = queue_size
        self.similarity = similarity
        self.energy_share = energy_share

    def initial_state(self, embedding_dim):
        """State before the first frame: a tuple of tensors to hand to `assign`."""
        return (
            ops.zeros((self.talkers, self.queue_size, embedding_dim), "float32"),  # queues, oldest first
            ops.zeros((self.talkers,), "int32"),  # members of each queue
            ops.zeros((1 if self.talkers == 2 else self.talkers, embedding_dim), "float32"),  # frame before
            ops.zeros((), "float32"),  # largest energy so far
        )

    def assign(self, state, embeddings, energies):
        """Assigns the frames of one block.

        Args:
            state: from `initial_state` or the call before.
            embeddings: [frames, embeddings a frame, embedding_dim], float32.
            energies: [frames], sum of squared real and imaginary parts of the mixture's frame.

        Returns:
            (state, [frames] int32 index into `permutations(talkers)`).
        """
        step = self._step_two if self.talkers == 2 else self._step_many
        frames = ops.shape(energies)[0]

        def body(frame, state, orders):
            state, order = step(state, (embeddings[frame], energies[frame]))
            return frame + 1, state, ops.slice_update(orders, (frame,), ops.reshape(order, (1,)))

        # Not ops.scan, whose outputs must have the shapes of its state on TensorFlow.
        _, state, orders = ops.while_loop(
            lambda frame, state, orders: frame < frames, body, (0, state, ops.zeros((frames,), "int32"))
        )
        return state, orders

    def _step_two(self, state, frame):
        queues, sizes, previous, loudest = state
        embedding, energy = frame
        loudest = ops.maximum(loudest, energy)
        loud = energy > self.energy_share * loudest
        scores = ops.matmul(self._means(queues, sizes), embedding[0])  # [2]
        first = ops.equal(sizes[0], 0)
        alone = ops.equal(sizes[1], 0)
        opens = ops.logical_and(ops.logical_not(first), ops.logical_and(
            alone, ops.sum(previous * embedding) < self.similarity))
        queue = ops.where(alone, ops.cast(opens, "int32"), ops.cast(scores[0] <= scores[1], "int32"))
        enters = ops.logical_or(loud, ops.logical_or(first, opens))
        entered = ops.logical_and(enters, ops.equal(ops.arange(2), queue))
        queues, sizes = self._enter(queues, sizes, entered, ops.repeat(embedding, 2, axis=0))
        # Queue 0 is the order in which estimate 2 comes out first, as in the original.
        return (queues, sizes, embedding, loudest), 1 - queue

    def _step_many(self, state, frame):
        queues, sizes, previous, loudest = state
        embedding, energy = frame
        loudest = ops.maximum(loudest, energy)
        similarities = ops.matmul(embedding, ops.transpose(self._means(queues, sizes)))  # [estimate, talker]
        order = ops.cast(ops.argmax(permutation_costs(similarities)), "int32")
        enters = ops.logical_or(ops.equal(sizes, 0), energy > self.energy_share * loudest)
        inverse = ops.convert_to_tensor(np.argsort(permutations(self.talkers), axis=1).astype("int32"))
        queues, sizes = self._enter(queues, sizes, enters, ops.take(embedding, inverse[order], axis=0))
        return (queues, sizes, embedding, loudest), order

    def _means(self, queues, sizes):
        """[queues, D]; 0 for an empty queue."""
        count = ops.cast(ops.maximum(sizes, 1), "float32")[:, None]
        return ops.sum(queues, axis=1) / count

    def _enter(self, queues, sizes, entered, embeddings):
        """Appends embeddings[i] to queue i where entered[i]; the oldest leaves a full queue."""
        longer = ops.concatenate([queues[:, 1:], embeddings[:, None]], axis=1)
        queues = ops.where(entered[:, None, None], longer, queues)
        return queues, ops.minimum(sizes + ops.cast(entered, "int32"), self.queue_size)
