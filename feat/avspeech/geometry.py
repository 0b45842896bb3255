"""Areas of boxes and how far they overlap."""

import numpy as np


def areas(boxes):
    """[n] of [n, 4]."""
    boxes = np.reshape(boxes, (-1, 4))
    return np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)


def overlaps(ones, others):
    """Intersection over union of [n, 4] and [m, 4]: [n, m]."""
    ones, others = np.reshape(ones, (-1, 1, 4)), np.reshape(others, (1, -1, 4))
    corner, end = np.maximum(ones[..., :2], others[..., :2]), np.minimum(ones[..., 2:], others[..., 2:])
    common = np.prod(np.maximum(end - corner, 0), axis=-1)
    return common / np.maximum(areas(ones)[:, None] + areas(others)[None] - common, 1e-9)
