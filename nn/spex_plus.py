"""SpEx+: extracts one talker from a mixture, by an enrolment recording of that talker."""

from keras import ops

from models import losses
from models.spex_plus import BRANCHES, zero_behind

RATIOS = {"si_sdr": losses.si_sdr, "si_snr": losses.si_snr}


class TargetExtraction:
    """Objective of SpEx+: weighted SI-SDR of three estimates, and the classification of the speaker.

    Args:
        model: SpexPlus.
        ratio: "si_sdr" keeps means, as the seed does; "si_snr" removes them, as the authors do.
        classification: weight of the cross-entropy.
        middle, long: weights of the second and third estimate; the first has what they leave of 1.
    """

    def __init__(self, model, ratio="si_sdr", classification=0.5, middle=0.1, long=0.1):
        self.model = model
        self.ratio = RATIOS[ratio]
        self.classification = classification
        self.middle = middle
        self.long = long

    def __call__(self, batch, training=False):
        """(loss [batch], metrics), all of them [batch].

        Args:
            batch: what SpexPlus takes, "target" [batch, samples] and "speaker" [batch] int, -1 for one who is not
                in the training set. With "samples", what is behind them does not count.
        """
        outputs = self.model(batch, training=training)
        estimates, target = [outputs[branch] for branch in BRANCHES], batch["target"]
        if "samples" in batch:
            estimates = [zero_behind(estimate, batch["samples"]) for estimate in estimates]
            target = zero_behind(target, batch["samples"])
        extraction = losses.extraction_loss(estimates, target, self.ratio, self.middle, self.long)
        classification = losses.cross_entropy(outputs["logits"], batch["speaker"])
        correct = ops.cast(ops.equal(ops.argmax(outputs["logits"], axis=-1), batch["speaker"]), "float32")
        return extraction + self.classification * classification, {
            "si_sdr": self.ratio(estimates[0], target),
            "extraction_loss": extraction,
            "cross_entropy": classification,
            "speakers_right": correct,
        }
