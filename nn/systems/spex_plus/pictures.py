"""TensorBoard pictures of SpEx+: spectrograms of mixture, enrolment, target and estimate."""

from nn.training.pictures import write_signals


class ExtractionPictures:
    """Draws and plays the first few validation mixtures with the talkers extracted from them.

    Args:
        names: of these mixtures.
        batches: () -> iterable of batches of one mixture, in the same order.
        sample_rate: Hz.
        extract: batch of one -> estimate [samples].
    """

    def __init__(self, names, batches, sample_rate, extract):
        self.names = names
        self.batches = batches
        self.sample_rate = sample_rate
        self.extract = extract

    def __call__(self, folder, step):
        """As SeparationPictures."""
        heard = {}
        for name, batch in zip(self.names, self.batches() if self.names else ()):
            heard[name] = {kind: batch[kind][0].numpy() for kind in ("enrolment", "mixture", "target")}
            heard[name]["estimate"] = self.extract(batch)
        write_signals(heard, self.sample_rate, "extraction", folder, step)
