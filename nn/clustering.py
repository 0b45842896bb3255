"""Whole-file decoding of the second stage: which estimate belongs to which talker in every frame."""

import numpy as np
from scipy.cluster.vq import kmeans2

from models.losses import permutations

ENERGY_SHARE = 2e-3  # of the loudest frame of an estimate, from which a frame counts in the clustering
STARTS = 10
LONGEST = 300  # iterations


def active_frames(estimates):
    """Frames that are loud in any estimate.

    Args:
        estimates: complex or [..., 2] real spectra, [talkers, frames, bins, 2].

    Returns:
        bool [frames].
    """
    energy = np.sum(np.square(estimates), axis=(-2, -1))  # [C, T]
    return np.any(energy >= ENERGY_SHARE * energy.max(axis=1, keepdims=True), axis=0)


def kmeans(points, clusters, seed):
    """Centroids of the best of ten k-means++ starts: [points, dimension] -> [clusters, dimension] float64."""
    generator = np.random.default_rng(seed)
    points = np.asarray(points, np.float64)
    if len(points) <= clusters:
        return np.resize(points, (clusters, points.shape[1]))
    tolerance = 1e-4 * np.mean(np.var(points, axis=0))
    best, best_spread = None, np.inf
    for _ in range(STARTS):
        centroids = points[generator.choice(len(points), clusters, replace=False)]
        with np.errstate(all="ignore"):
            centroids, _ = kmeans2(points, clusters, iter=1, minit="++", rng=generator, missing="warn")
        for _ in range(LONGEST // 10):
            moved, labels = kmeans2(points, centroids, iter=10, minit="matrix", missing="warn")
            shift = np.sum(np.square(moved - centroids))
            centroids = moved
            if shift <= tolerance:
                break
        spread = np.sum(np.square(points - centroids[labels]))
        if spread < best_spread:
            best, best_spread = centroids, spread
    return best


def whole_file_assignment(embeddings, estimates, seed=0):
    """Clusters the embeddings of a file.

    Two talkers: 2-means on the embeddings of the active frames; every frame goes to the centroid with the
    larger inner product, as in the original. More talkers: as many clusters as talkers; a frame's estimates
    go to different ones, in the order with the largest sum of inner products.

    Args:
        embeddings: [frames, embeddings a frame, D].
        estimates: [talkers, frames, bins, 2].

    Returns:
        [frames] index into `permutations(talkers)`.
    """
    talkers = estimates.shape[0]
    active = active_frames(estimates)
    points = embeddings[active].reshape(-1, embeddings.shape[-1])
    centroids = kmeans(points, talkers, seed).astype(np.float32)
    scores = embeddings @ centroids.T  # [T, embeddings a frame, clusters]
    if talkers == 2:
        return np.argmax(scores[:, 0], axis=-1)
    orders = permutations(talkers)
    totals = [sum(scores[:, i, talker] for i, talker in enumerate(order)) for order in orders]
    return np.argmax(np.stack(totals, axis=-1), axis=-1)


def permute(estimates, assignment):
    """Puts estimates in talker order: [talkers, frames, ...] and permutation indices [frames]."""
    inverse = np.argsort(permutations(estimates.shape[0]), axis=1)[assignment]  # [T, talker]
    return np.take_along_axis(
        estimates, inverse.T.reshape(*inverse.T.shape, *[1] * (estimates.ndim - 2)), axis=0
    )
