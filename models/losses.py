"""Losses and the permutations behind them. Every loss returns one value per example, [batch].

C is the number of talkers. Permutations are rows of `permutations(C)`: estimate i belongs to talker p[i];
row 0 keeps the order, and for two talkers row 1 swaps it.
"""

import itertools

import numpy as np
from keras import ops


def permutations(talkers):
    """All orders of `talkers`, [talkers!, talkers] int32; the first is 0, 1, 2, ..."""
    return np.array(list(itertools.permutations(range(talkers))), "int32")


def permutation_costs(pairwise):
    """[..., C estimates, C talkers] pairwise costs -> [..., C!], the sum of each permutation."""
    orders = permutations(pairwise.shape[-1])
    talkers = orders.shape[1]
    chosen = np.eye(talkers, dtype="float32")[orders].reshape(len(orders), -1)  # [C!, C * C]
    # Not ops.einsum with an ellipsis, which ONNX cannot carry.
    return ops.matmul(ops.reshape(pairwise, (*ops.shape(pairwise)[:-2], talkers * talkers)), chosen.T)


def assignment_cost(costs):
    """Least sum of costs of giving every row a column of its own: [..., n, n] -> [...].

    Exact for any n. Goes through the sets of columns that the first rows can take, 2^n of them, instead of the n!
    permutations (Held and Karp, 1962).
    """
    n = costs.shape[-1]
    best, known = ops.zeros_like(costs[..., 0, :1]), {(): 0}  # of the rows so far, for every set of columns
    for row in range(n):
        sets = list(itertools.combinations(range(n), row + 1))
        before = np.array([[known[tuple(c for c in chosen if c != last)] for last in chosen] for chosen in sets])
        totals = ops.take(best, before, axis=-1) + ops.take(costs[..., row, :], np.array(sets), axis=-1)
        best, known = ops.min(totals, axis=-1), {chosen: i for i, chosen in enumerate(sets)}
    return best[..., 0]


def frame_costs(estimates, references, size=None):
    """Frame-level PIT costs (tPIT): mean absolute difference, summed over talkers, of every permutation.

    Args:
        estimates, references: [batch, C, frames, bins, 2].
        size: number of values the mean is over; default bins * 2. The original's spectra have dummy bins,
            always 0, that count in its mean.

    Returns:
        [batch, frames, C!].
    """
    *_, bins, _ = ops.shape(estimates)
    size = size or 2 * bins
    talkers = estimates.shape[1]
    rows = [
        ops.stack([ops.sum(ops.abs(estimates[:, i] - references[:, j]), axis=(-2, -1)) for j in range(talkers)], -1)
        for i in range(talkers)
    ]
    return permutation_costs(ops.stack(rows, axis=-2)) / ops.cast(size, "float32")


def frame_assignment(costs):
    """[batch, frames, C!] costs -> [batch, frames] index of the cheapest permutation; a tie keeps the order."""
    return ops.argmin(costs, axis=-1)


def permute_frames(estimates, assignment):
    """Puts estimates in talker order frame by frame.

    [batch, C, frames, bins, 2] and permutation indices [batch, frames] -> [batch, C, frames, bins, 2].
    """
    talkers = estimates.shape[1]
    inverse = np.argsort(permutations(talkers), axis=1)  # talker j takes estimate inverse[j]
    sources = np.eye(talkers, dtype="float32")[inverse]  # [C!, talker, estimate]
    weights = ops.take(ops.convert_to_tensor(sources), assignment, axis=0)  # [B, T, talker, estimate]
    weights = ops.transpose(weights, (2, 3, 0, 1))[..., None, None]  # [talker, estimate, B, T, 1, 1]
    return ops.stack([sum(weights[j, i] * estimates[:, i] for i in range(talkers)) for j in range(talkers)], axis=1)


def snr(estimates, references):
    """Signal-to-noise ratio in dB, without scaling or mean removal: [..., samples] -> [...].

    10 log10(sum s^2 / sum (estimate - s)^2). Held below 80 dB, and 0, with no gradient, where the reference
    is silent, since the ratio is then undefined.
    """
    signal = ops.sum(ops.square(references), axis=-1)
    noise = ops.sum(ops.square(estimates - references), axis=-1)
    silent = signal <= 0.0
    signal = ops.where(silent, 1.0, signal)
    noise = ops.where(silent, 1.0, ops.maximum(noise, 1e-8 * signal))
    return float(10.0 / np.log(10.0)) * (ops.log(signal) - ops.log(noise))


def pairwise_snr(estimates, references):
    """[batch, C, samples] twice -> [batch, C estimates, C talkers], dB."""
    return snr(ops.expand_dims(estimates, 2), ops.expand_dims(references, 1))


def utterance_pit_snr(estimates, references):
    """Mean SNR over talkers under the best permutation of the whole utterance (uPIT): [batch], dB."""
    talkers = estimates.shape[1]
    totals = permutation_costs(pairwise_snr(estimates, references))
    return ops.max(totals, axis=-1) / talkers


def si_sdr(estimates, references):
    """Scale-invariant signal-to-distortion ratio in dB, means kept: [..., samples] -> [...].

    As torchmetrics defines it, with float32's machine epsilon beside every sum, so that silent and perfect
    estimates have finite values; 0 where both signals are silent. Source: ir4kgl/ss_dla.
    """
    epsilon = float(np.finfo("float32").eps)
    energy = ops.sum(ops.square(references), axis=-1, keepdims=True)
    scale = (ops.sum(estimates * references, axis=-1, keepdims=True) + epsilon) / (energy + epsilon)
    target = scale * references
    signal = ops.sum(ops.square(target), axis=-1) + epsilon
    noise = ops.sum(ops.square(target - estimates), axis=-1) + epsilon
    return float(10.0 / np.log(10.0)) * (ops.log(signal) - ops.log(noise))


def clamped_si_sdr(estimates, references, clamp_db=30.0, zero_mean=True):
    """The same ratio from the coherence, within about +-clamp_db: [..., samples] -> [...].

    The gradient is 0 beyond the limits. Source: fakufaku/fast_bss_eval, as fakufaku/diffusion-separation validates.
    """
    if zero_mean:
        estimates, references = (x - ops.mean(x, axis=-1, keepdims=True) for x in (estimates, references))
    lengths = ops.maximum(_norm(estimates), 1e-6) * ops.maximum(_norm(references), 1e-6)
    share = ops.square(ops.sum(estimates * references, axis=-1) / lengths)
    least = float(1 / (1 + 10 ** (clamp_db / 10)))
    share = ops.clip(share, least, 1 - least)
    return float(10.0 / np.log(10.0)) * (ops.log(share) - ops.log(1 - share))


def utterance_pit_si_sdr(estimates, references, clamp_db=30.0, zero_mean=True):
    """Mean `clamped_si_sdr` over talkers under the best permutation of the whole utterance: [batch], dB."""
    pairwise = clamped_si_sdr(ops.expand_dims(estimates, 2), ops.expand_dims(references, 1), clamp_db, zero_mean)
    return ops.max(permutation_costs(pairwise), axis=-1) / estimates.shape[1]


def si_snr(estimates, references):
    """The same ratio with means removed, as gemengtju/SpEx_Plus computes it: [..., samples] -> [...].

    Held within about +-160 dB; the gradient of a silent estimate or reference is 0.
    """
    epsilon = 1e-8
    estimates, references = (x - ops.mean(x, axis=-1, keepdims=True) for x in (estimates, references))
    energy = ops.sum(ops.square(references), axis=-1, keepdims=True)
    target = ops.sum(estimates * references, axis=-1, keepdims=True) * references / (energy + epsilon)
    ratio = _norm(target) / (_norm(estimates - target) + epsilon)
    return float(20.0 / np.log(10.0)) * ops.log(epsilon + ratio)


def _norm(x):
    """Euclidean norm over the last axis, whose gradient at 0 is 0."""
    energy = ops.sum(ops.square(x), axis=-1)
    zero = energy <= 0.0
    return ops.where(zero, 0.0, ops.sqrt(ops.where(zero, 1.0, energy)))


def pairwise_binaural_snr(estimates, references, samples=None):
    """SNR in dB of every estimate against every talker: the mean of its decibels at the two ears.

    Means over time are removed from every signal; levels count. About -80 dB for a silent reference, 80 dB and more
    for a perfect estimate. Source: speechbrain/speechbrain, recipes/BinauralWSJ0Mix.

    Args:
        estimates, references: [batch, C, samples', ears].
        samples: [batch], how many are not padding; None: all.

    Returns:
        [batch, C estimates, C talkers].
    """
    estimates, references = (ops.cast(x, "float32") for x in (estimates, references))
    if samples is None:
        inside, count = None, ops.cast(ops.shape(references)[2], "float32")
    else:
        inside = ops.reshape(frame_mask(samples, ops.shape(references)[2]), (-1, 1, ops.shape(references)[2], 1))
        count = ops.reshape(ops.cast(samples, "float32"), (-1, 1, 1, 1))

    def centred(x):
        x = x if inside is None else x * inside
        x = x - ops.sum(x, axis=2, keepdims=True) / count
        return x if inside is None else x * inside

    estimates, references = centred(estimates), centred(references)
    difference = ops.expand_dims(estimates, 2) - ops.expand_dims(references, 1)
    noise = ops.sum(ops.square(difference), axis=3)  # [B, C, C, ears]
    signal = ops.expand_dims(ops.sum(ops.square(references), axis=2), 1)
    decibels = float(10.0 / np.log(10.0)) * ops.log(signal / (noise + 1e-8) + 1e-8)
    return ops.mean(decibels, axis=-1)


def binaural_pit_snr(estimates, references, samples=None):
    """Mean over the talkers of `pairwise_binaural_snr`, under the permutation where it is largest: [batch], dB."""
    totals = permutation_costs(pairwise_binaural_snr(estimates, references, samples))
    return ops.max(totals, axis=-1) / estimates.shape[1]


def extraction_loss(estimates, reference, ratio=si_sdr, middle=0.1, long=0.1):
    """Negative weighted ratio of SpEx+'s three estimates: [batch], dB.

    Args:
        estimates: (short, middle, long), each [batch, samples].
        reference: [batch, samples].
        ratio: si_sdr or si_snr.
        middle, long: weights; that of short is what they leave of 1.
    """
    weights = (1.0 - middle - long, middle, long)
    return -sum(weight * ratio(estimate, reference) for weight, estimate in zip(weights, estimates))


def cross_entropy(logits, labels):
    """Softmax cross-entropy of [batch, classes] with int labels [batch]: [batch]. Labels below 0 cost nothing."""
    known = labels >= 0
    costs = ops.sparse_categorical_crossentropy(ops.maximum(labels, 0), logits, from_logits=True)
    return ops.where(known, costs, 0.0)


def grouping_targets(costs, frame_mask=None):
    """What sequential grouping learns from the tPIT costs [batch, frames, C!].

    Returns:
        assignment: [batch, frames], index of the cheapest permutation.
        weights: [batch, frames], difference between the dearest and the cheapest permutation, divided by
            its sum over the utterance: frames where the order matters count, silence does not. All 0 where
            the order never matters.
    """
    stakes = ops.max(costs, axis=-1) - ops.min(costs, axis=-1)
    if frame_mask is not None:
        stakes = stakes * frame_mask
    total = ops.sum(stakes, axis=-1, keepdims=True)
    return frame_assignment(costs), stakes / ops.where(total > 0.0, total, 1.0)


def grouping_loss(embeddings, labels, weights):
    """Weighted affinity cost of Deep CASA's second stage: 10000 ||W (V V' - Y Y') W||_F^2.

    Args:
        embeddings: V, [batch, rows, dimension].
        labels: Y, one-hot, [batch, rows, classes].
        weights: diagonal of W, [batch, rows]. The code of the original weights each row by w, its paper by
            the square root.

    Returns:
        [batch].
    """
    v = embeddings * weights[..., None]
    y = labels * weights[..., None]

    def affinity(a, b):
        return ops.sum(ops.square(ops.matmul(ops.transpose(a, (0, 2, 1)), b)), axis=(1, 2))

    return 1e4 * (affinity(v, v) - 2.0 * affinity(v, y) + affinity(y, y))


def frame_mask(frames, count):
    """True frames [batch] -> [batch, count] float32, 1 for frames, 0 for padding."""
    return ops.cast(ops.arange(count)[None] < ops.cast(frames, "int32")[:, None], "float32")


def mean_frame_cost(costs, frames, leading=None):
    """Mean over frames of the cheapest order's cost, which is logged beside the objective: [batch].

    Args:
        costs: [batch, frames, C!].
        frames: true frames, [batch].
        leading: None, or the number of silent frames put before the batch; then the mean is the original's,
            over all padding, times the batch's largest over its mean length.
    """
    cheapest = ops.min(costs, axis=-1)
    count = ops.shape(cheapest)[1]
    frames = ops.cast(frames, "float32")
    if leading is None:
        return ops.sum(cheapest * frame_mask(frames, count), axis=-1) / frames
    padded = ops.cast(count + leading, "float32")
    return ops.sum(cheapest, axis=-1) / padded * ops.max(frames) / ops.mean(frames)


def discriminative_loss(estimates, references, gamma=0.1):
    """Squared distance to the own reference, less gamma times those to the others': [batch].

    Its mean over frames, bins and parts, of the sum over talkers. Can be negative; with gamma above 0 the estimates
    that make it smallest are the references less a share of the others. Source: Huang et al., "Joint Optimization of
    Masks and Deep Recurrent Neural Networks for Monaural Source Separation", 2015; vitrioil/Speech-Separation.

    Args:
        estimates, references: [batch, talkers, frames, bins, 2], in the same order.
        gamma: 0: the squared error alone.
    """
    talkers = references.shape[1]
    axes = tuple(range(2, len(references.shape)))
    own = ops.mean(ops.square(references - estimates), axis=axes)  # [B, talkers]
    loss = ops.sum(own, axis=1)
    if gamma and talkers > 1:
        for shift in range(1, talkers):
            other = ops.mean(ops.square(references - ops.roll(estimates, shift, axis=1)), axis=axes)
            loss = loss - gamma * ops.sum(other, axis=1)
    return loss


def spectral_snr(estimates, references):
    """Mean SNR over talkers of compressed spectrograms [batch, talkers, frames, bins, 2]: [batch], dB."""
    flat = [ops.reshape(x, (*ops.shape(x)[:2], -1)) for x in (estimates, references)]
    return ops.mean(snr(*flat), axis=1)
