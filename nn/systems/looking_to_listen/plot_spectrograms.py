"""A map of cached spectrograms: each becomes a point, those that are alike lie together.

    python nn/systems/looking_to_listen/plot_spectrograms.py --input_dir faces/spec --method tsne --output map.png

Files are .npy of compressed spectrograms [bins, frames, 2]. "mixed" are those whose names are numbers.
Needs pip install "deep-casa[plot]".
"""

import glob
import os

import matplotlib

matplotlib.use("Agg")

from feat.base.script import run_script

import numpy as np
from absl import flags
from matplotlib import pyplot as plt

from feat.base.files import UserError, atomic_path
from feat.base.parallel import progress

FLAGS = flags.FLAGS

METHODS = ("tsne", "pca", "umap")


def find_files(folder, kind="none", count=0):
    """Sorted paths of .npy files of a kind, "none" (all), "mixed" or "raw"; the first `count`, 0: all; or UserError."""
    paths = sorted(glob.glob(os.path.join(glob.escape(folder), "*.npy")))
    if kind != "none":
        paths = [path for path in paths if is_mixture(path) == (kind == "mixed")]
    if len(paths) < 3:
        raise UserError(f"{folder}: {len(paths)} spectrograms of the kind asked for; three are needed at least")
    return paths[: count or None]


def is_mixture(path):
    """Whether the name of a file is a number."""
    return os.path.splitext(os.path.basename(path))[0].isdecimal()


def read_spectrograms(paths):
    """[files, values], float32. Raises UserError if they have not all one shape."""
    arrays = []
    for path in progress(paths, "read"):
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: cannot be read ({error}); make it again") from error
        if arrays and array.size != arrays[0].size:
            raise UserError(f"{path}: {array.size} values, {paths[0]} has {arrays[0].size}; make them of one length")
        arrays.append(np.asarray(array, np.float32).ravel())
    return np.stack(arrays)


def reduce_to_plane(values, method, seed=0):
    """[files, values] -> [files, 2]. Raises UserError if the package is missing."""
    try:
        from sklearn.decomposition import PCA

        if method == "pca":
            return PCA(2, random_state=seed).fit_transform(values)
        # Distances are kept by far fewer numbers, and are measured many times.
        fewer = PCA(min(50, *values.shape), random_state=seed).fit_transform(values)
        if method == "tsne":
            from sklearn.manifold import TSNE

            return TSNE(2, perplexity=min(30.0, (len(values) - 1) / 3), random_state=seed).fit_transform(fewer)
        from umap import UMAP

        return UMAP(n_components=2, n_neighbors=min(15, len(values) - 1), random_state=seed).fit_transform(fewer)
    except ImportError as error:
        raise UserError(f'--method {method}: {error.name} is not here; pip install "deep-casa[plot]"') from error


def main(_):
    paths = find_files(FLAGS.input_dir, FLAGS.filter_files, FLAGS.total_files)
    points = reduce_to_plane(read_spectrograms(paths), FLAGS.method, FLAGS.seed)
    mixed = np.array([is_mixture(path) for path in paths])
    figure, axis = plt.subplots(figsize=(7, 6), layout="constrained")
    for kind, chosen in (("mixtures", mixed), ("talkers", ~mixed)):
        if chosen.any():
            axis.scatter(*points[chosen].T, s=8, label=f"{kind}, {chosen.sum()}")
    axis.set_title(f"{FLAGS.input_dir}, {FLAGS.method}")
    axis.legend()
    with atomic_path(FLAGS.output) as temporary:
        figure.savefig(temporary, dpi=120)
    print(f"{FLAGS.output}: {len(paths)} spectrograms")


if __name__ == "__main__":
    flags.DEFINE_string("input_dir", "av/spec", "folder of .npy spectrograms")
    flags.DEFINE_enum("method", "tsne", list(METHODS), "how to come down to a plane")
    flags.DEFINE_integer("total_files", 0, "take so many, the first ones; 0: all", lower_bound=0)
    flags.DEFINE_enum("filter_files", "none", ["none", "mixed", "raw"], "mixtures alone, talkers alone, or all")
    flags.DEFINE_string("output", "spectrograms.png", "picture to write")
    flags.DEFINE_integer("seed", 0, "of t-SNE and UMAP")
    run_script(main)
