"""Whole-file decoding of the second stage: which estimate belongs to which talker in every frame."""

import numpy as np
from scipy.cluster.vq import kmeans2

from models.losses import permutations

ENERGY_SHARE = 2e-3  # of the loudest frame of an estimate, from which a frame counts in the clustering
STARTS = 10
LONGEST = 300  # iterations
MOST_FRAMES = 50_000  # that k-means looks at


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


def assign(embeddings, centroids):
    """Permutation index of every frame, [frames].

    Two talkers: every frame goes to the centroid with the larger inner product, as in the original. More talkers:
    a frame's estimates go to different ones, in the order with the largest sum of inner products.

    Args:
        embeddings: [frames, embeddings a frame, D].
        centroids: [talkers, D].
    """
    scores = embeddings @ centroids.T  # [T, embeddings a frame, clusters]
    if len(centroids) == 2:
        return np.argmax(scores[:, 0], axis=-1)
    orders = permutations(len(centroids))
    totals = [sum(scores[:, i, talker] for i, talker in enumerate(order)) for order in orders]
    return np.argmax(np.stack(totals, axis=-1), axis=-1)


def whole_file_assignment(embeddings, estimates, seed=0):
    """Clusters the embeddings of the active frames of a file into as many clusters as talkers; see `assign`.

    Args:
        embeddings: [frames, embeddings a frame, D].
        estimates: [talkers, frames, bins, 2].

    Returns:
        [frames] index into `permutations(talkers)`.
    """
    whole = WindowClustering(estimates.shape[0], seed)
    whole.add(0, estimates, embeddings)
    return whole.orders()[0]


class WindowClustering:
    """Clustering over a whole file whose windows were embedded one by one.

    What an embedding means may turn from window to window. Each window is turned back so that its embeddings of the
    frames that it shares with the window before agree with those (orthogonal Procrustes); k-means then sees all.

    Args:
        talkers: number of estimates.
        seed: of the k-means.
    """

    def __init__(self, talkers, seed=0):
        self.talkers = talkers
        self.seed = seed
        self.embeddings = []  # of each window, turned
        self.energies = []  # of each window, [talkers, frames]
        self._before = None

    def add(self, start, estimates, embeddings):
        """Takes the next window.

        Args:
            start: its first frame.
            estimates: [talkers, frames, bins, 2].
            embeddings: [frames, embeddings a frame, D].
        """
        if self._before is not None:
            shared = self._before[0] + len(self.embeddings[-1]) - start
            embeddings = self._turn(shared, estimates[:, :shared], embeddings)
        self._before = start, estimates
        self.embeddings.append(embeddings)
        self.energies.append(np.sum(np.square(estimates), axis=(-2, -1)))

    def _turn(self, shared, estimates, embeddings):
        theirs = self._before[1][:, -shared:]
        pairwise = np.stack(
            [[np.abs(ours - other).sum(axis=(-2, -1)) for other in theirs] for ours in estimates]
        )  # [estimate, estimate before, frames]
        orders = permutations(self.talkers)
        costs = np.stack([sum(pairwise[i, j] for i, j in enumerate(order)) for order in orders])
        order = orders[np.argmin(costs, axis=0)]  # [frames, talkers]: the window before had estimate i at order[i]
        now, then = embeddings[:shared], self.embeddings[-1][-shared:]
        active = active_frames(theirs)
        if self.talkers == 2:
            # An embedding says whether to swap: comparable where both windows have the estimates in one order.
            same = active & (order[:, 0] == 0)
        else:
            then = np.take_along_axis(then, order[..., None], axis=1)
            same = active
        if not same.any():
            return embeddings
        left, _, right = np.linalg.svd(np.einsum("tei,tej->ij", now[same], then[same]))
        return embeddings @ (left @ right).astype(embeddings.dtype)

    def orders(self):
        """Permutation indices of the frames of each window, [[frames], ...]."""
        energies = np.concatenate(self.energies, axis=1)
        active = np.any(energies >= ENERGY_SHARE * energies.max(axis=1, keepdims=True), axis=0)
        points = np.concatenate(self.embeddings)[active]
        points = points[:: -(-len(points) // MOST_FRAMES)].reshape(-1, points.shape[-1])
        centroids = kmeans(points, self.talkers, self.seed).astype(np.float32)
        return [assign(embeddings, centroids) for embeddings in self.embeddings]


def permute(estimates, assignment):
    """Puts estimates in talker order: [talkers, frames, ...] and permutation indices [frames]."""
    inverse = np.argsort(permutations(estimates.shape[0]), axis=1)[assignment]  # [T, talker]
    return np.take_along_axis(estimates, inverse.T.reshape(*inverse.T.shape, *[1] * (estimates.ndim - 2)), axis=0)
