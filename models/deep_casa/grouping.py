"""Sequential grouping, the second stage of Deep CASA: a TCN embeds frames, clustering tells the talkers apart.

With two talkers each frame has one embedding, which says whether the order of the two estimates is kept or
swapped, as in the original. With C > 2 talkers there are C! orders and clusters of orders could not be named,
so each frame has C embeddings, one an estimate, and a cluster is a talker.

Sources: Liu and Wang, TASLP 27 (2019) and TASLP 28 (2020); reference repository yuzhou-git/deep-casa.
"""

import keras
import numpy as np
from keras import ops

from models.deep_casa.dense_unet import frequency_padding, leading_frames
from models.layers.conv import DenseConv2D, DilatedDepthwiseConv1D, PointwiseConv
from models.layers.norm import CumulativeNorm, GlobalNorm
from models.losses import permutation_costs, permutations

FEATURE_MAPS = 16
FEATURE_LAYERS = 4
ENERGY_SHARE = 2e-3  # of the loudest frame of an estimate, from which a frame counts in the clustering
KMEANS_STARTS = 10
KMEANS_LONGEST = 100  # iterations


@keras.saving.register_keras_serializable("deep_casa.grouping")
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


@keras.saving.register_keras_serializable("deep_casa.grouping")
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
            self.add_weight(shape=(1,), initializer="ones" if i == blocks - 1 else "zeros", name=f"block_scale_{i}")
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
            # Not embeddings[frame], whose shape LiteRT knows too late.
            state, order = step(state, (ops.take(embeddings, frame, axis=0), ops.take(energies, frame, axis=0)))
            # Not ops.slice_update, which neither ONNX nor LiteRT can carry.
            return frame + 1, state, ops.scatter_update(orders, ops.reshape(frame, (1, 1)), ops.reshape(order, (1,)))

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
        opens = ops.logical_and(
            ops.logical_not(first), ops.logical_and(alone, ops.sum(previous * embedding) < self.similarity)
        )
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
        order = largest(permutation_costs(similarities))
        enters = ops.logical_or(ops.equal(sizes, 0), energy > self.energy_share * loudest)
        inverse = ops.convert_to_tensor(np.argsort(permutations(self.talkers), axis=1).astype("int32"))
        queues, sizes = self._enter(
            queues, sizes, enters, ops.take(embedding, ops.take(inverse, order, axis=0), axis=0)
        )
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


def whole_file_assignment(embeddings, estimates):
    """Clusters the embeddings of a file's active frames and tells the order of the estimates in every frame.

    The same as nn.systems.deep_casa.clustering.whole_file_assignment, in operations that can be exported, and nothing
    is drawn at random. Which cluster is which talker is settled by the loudest frame, whose estimates keep their order.

    Args:
        embeddings: [frames, embeddings a frame, embedding_dim].
        estimates: [talkers, frames, bins, 2].

    Returns:
        [frames] int32 index into `permutations(talkers)`.
    """
    talkers = estimates.shape[0]
    per_frame, dimension = embeddings.shape[1:]
    energies = ops.sum(ops.square(estimates), axis=(-2, -1))  # [C, T]
    active = energies >= ENERGY_SHARE * ops.max(energies, axis=1, keepdims=True)
    weights = ops.max(ops.cast(active, "float32"), axis=0)  # [T]
    points = ops.reshape(embeddings, (-1, dimension))
    centroids = kmeans(points, ops.repeat(weights, per_frame), talkers)
    loudest = largest(ops.sum(energies, axis=0))
    scores = ops.expand_dims(ops.take(_order_scores(embeddings, centroids), loudest, axis=0), 0)
    order = ops.take(ops.convert_to_tensor(permutations(talkers)), largest(scores), axis=0)
    centroids = ops.take(centroids, ops.reshape(order, (talkers,)), axis=0)
    return largest(_order_scores(embeddings, centroids))


def largest(x):
    """Index of the largest value of the last axis, the first of equal ones, int32."""
    # Not ops.argmax, which Keras writes with operations on bits that ONNX cannot carry.
    return ops.squeeze(ops.cast(ops.top_k(x, 1)[1], "int32"), -1)


def _order_scores(embeddings, centroids):
    """[frames, embeddings a frame, D] and [talkers, D] -> [frames, talkers!], how well each order of estimates fits."""
    frames, per_frame, dimension = ops.shape(embeddings)
    talkers = centroids.shape[0]
    scores = ops.matmul(ops.reshape(embeddings, (-1, dimension)), ops.transpose(centroids))
    return scores if talkers == 2 else permutation_costs(ops.reshape(scores, (frames, per_frame, talkers)))


def kmeans(points, weights, clusters):
    """Centroids of the best of ten starts: [points, dimension] -> [clusters, dimension].

    The starts are those of k-means++, drawn with numbers that are always the same; all are followed together.

    Args:
        weights: [points], 0 for a point that does not count, else 1.
    """
    starts = KMEANS_STARTS
    draws = np.random.default_rng(0).random((clusters, starts)).astype("float32")
    squares = ops.sum(ops.square(points), axis=1)  # [N]

    def distances(centroids):
        """[starts * k, D] -> squared distances [N, starts, k]."""
        products = ops.matmul(points, ops.transpose(centroids))
        total = squares[:, None] - 2.0 * products + ops.sum(ops.square(centroids), axis=1)
        return ops.reshape(ops.maximum(total, 0.0), (-1, starts, centroids.shape[0] // starts))

    # The next centroid is a point drawn in proportion to its distance from those that are there.
    chosen, shares = [], ops.repeat(weights[:, None], starts, axis=1)  # [N, starts]
    for draw in draws:
        sums = ops.cumsum(shares, axis=0)
        passed = ops.cast(sums <= draw * ops.max(sums, axis=0), "int32")
        index = ops.minimum(ops.sum(passed, axis=0), ops.shape(points)[0] - 1)
        chosen.append(ops.take(points, index, axis=0))  # [starts, D]
        distance = ops.squeeze(distances(chosen[-1]), -1) * weights[:, None]
        shares = distance if len(chosen) == 1 else ops.minimum(shares, distance)
    centroids = ops.reshape(ops.stack(chosen, axis=1), (starts * clusters, points.shape[1]))

    def step(iteration, centroids, before):
        nearest = ops.one_hot(largest(-distances(centroids)), clusters) * weights[:, None, None]
        nearest = ops.reshape(nearest, (-1, starts * clusters))
        sizes = ops.expand_dims(ops.sum(nearest, axis=0), -1)
        means = ops.matmul(ops.transpose(nearest), points) / ops.maximum(sizes, 1.0)
        return iteration + 1, ops.where(sizes > 0.0, means, centroids), centroids

    def moves(iteration, centroids, before):
        return ops.logical_and(iteration < KMEANS_LONGEST, ops.max(ops.abs(centroids - before)) > 0.0)

    _, centroids, _ = ops.while_loop(moves, step, (0, centroids, centroids + 1.0))
    spread = ops.sum(ops.min(distances(centroids), axis=-1) * weights[:, None], axis=0)  # [starts]
    centroids = ops.reshape(centroids, (starts, clusters, points.shape[1]))
    return ops.take(centroids, largest(-spread), axis=0)
