"""Windows of a long recording: where they lie, and how what was made of each is put together again."""

from typing import NamedTuple

import numpy as np

from models.losses import permutations

WINDOW_S, OVERLAP_S = 10.0, 2.5  # unless somebody says otherwise


class Windows(NamedTuple):
    """Overlapping windows, in frames.

    Attributes:
        length: of a window.
        step: from one to the next.
    """

    length: int
    step: int

    @classmethod
    def of_seconds(cls, frames_per_second, window=WINDOW_S, overlap=OVERLAP_S):
        """Windows of so many seconds that overlap for so many."""
        length = round(window * frames_per_second)
        return cls(length, length - round(overlap * frames_per_second))

    def starts(self, frames):
        """First frames of the windows of a recording; the last one ends with it. One window for a short one."""
        if frames <= self.length:
            return [0]
        return [*range(0, frames - self.length, self.step), frames - self.length]


def piece(samples, start, length):
    """samples[..., start : start + length], with zeros where there are none."""
    cut = np.zeros((*samples.shape[:-1], length), np.float32)
    first, last = max(start, 0), min(start + length, samples.shape[-1])
    if last > first:
        cut[..., first - start : last - start] = samples[..., first:last]
    return cut


def join(parts, match=False):
    """Cross-fades what was made of overlapping windows.

    Args:
        parts: iterable of (first sample, [talkers, ..., samples]), one window after the other; arrays are written to.
        match: order the talkers of each as those before it where they overlap; for talkers that nothing else tells.

    Yields:
        [talkers, ..., samples], one after the other.
    """
    kept, kept_from = None, 0
    for begin, signals in parts:
        if kept is not None:
            yield kept[..., : begin - kept_from]
            kept = kept[..., begin - kept_from :]
            overlap = kept.shape[-1]
            if match:
                signals = signals[best_order(kept, signals[..., :overlap])]
            fade = np.linspace(0, 1, overlap + 2)[1:-1]
            signals[..., :overlap] = (1 - fade) * kept + fade * signals[..., :overlap]
        kept, kept_from = signals, begin
    if kept is not None:
        yield kept


def best_order(reference, signals):
    """Indices that put signals [talkers, ..., samples] into the order of those of the reference that they resemble."""
    reference, signals = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (reference, signals))
    products = reference @ signals.T  # [reference, signal]
    orders = permutations(len(signals))
    return orders[np.argmax([sum(products[i, j] for i, j in enumerate(order)) for order in orders])]
