"""What a system gives to the training loop (Task, DrawnData, TrainOptions), and the state of a run."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
from absl import flags

from feat.base.files import UserError

FLAGS = flags.FLAGS


@dataclasses.dataclass
class LoopState:
    """Where a training run stands. Saved with every checkpoint.

    Attributes:
        step: the next step, counted from 1.
        best_score, best_step: the best validation so far and the step before which it took place.
        rate: learning rate.
        validated_step: the last step before which validation took place.
        score: of that validation.
        plateau_loss, bad_epochs: the loss to beat and the epochs since, of PlateauRule and AnchorRule.
        marked_score, marked_step: of the checkpoint that is marked best. The best from the moment that one is better
            than the `best_score` that the original starts with; until then the best of those that there were.
    """

    step: int = 1
    best_score: float = math.nan
    best_step: int = 0
    rate: float = 0.0
    validated_step: int = 0
    score: float = math.nan
    plateau_loss: float = math.nan
    bad_epochs: int = 0
    marked_score: float = math.nan
    marked_step: int = 0

    def __post_init__(self):
        if self.best_step and not self.marked_step:  # of a checkpoint that was written before these were
            self.marked_score, self.marked_step = self.best_score, self.best_step


@dataclasses.dataclass(frozen=True)
class Epochs:
    """How many steps a run has. Source: the loops of yuzhou-git/deep-casa.

    Attributes:
        examples: utterances (or segments) of the training set.
        batch_size: global batch.
        epochs: passes.
        whole: count in whole epochs, as the original does with segments; otherwise it ends at the last step
            before epochs * examples / batch_size, which is one short of whole epochs.
        source: where the examples come from, for messages.
    """

    examples: int
    batch_size: int
    epochs: int
    whole: bool = False
    source: str = ""

    def __post_init__(self):
        if self.examples < self.batch_size:
            source = f"{self.source}: " if self.source else ""
            raise UserError(
                f"{source}{self.examples} training example(s) are fewer than the {self.batch_size} of a step;"
                " lower --batch_size or --accumulate, or lengthen the list"
            )

    @property
    def steps(self):
        """Steps in an epoch; what is left over is in no batch."""
        return self.examples // self.batch_size

    @property
    def total(self):
        """Number of the last step."""
        if self.whole:
            return self.epochs * self.steps
        return max(1, math.ceil(self.epochs * self.examples / self.batch_size) - 1)

    def starts(self, step):
        """Whether an epoch starts with this step."""
        return (step - 1) % self.steps == 0


@dataclasses.dataclass
class Task:
    """What a system brings to the loop.

    Attributes:
        system: name of the model, as in config.json.
        model: keras.Model with `settings`, its constructor arguments.
        optimizer: of nn.training.optimizers.
        objective: (batch, training) -> (loss [batch], {metric: [batch] or scalar}). In training it runs
            on each replica's piece of the batch.
        training_batches: (epoch from 0, batches to skip, feat.batches.common.Share) -> tf.data.Dataset of pieces.
        validation_batches: (feat.batches.common.Share) -> tf.data.Dataset of single examples; index -1 does not count.
        epochs: learning_rate.Epochs.
        rule: learning-rate rule.
        score: the metric that decides which checkpoint is best; "loss" is the objective itself.
        higher_is_better: of the score.
        worst_score: of an untrained model in the original's bookkeeping.
        seconds_per_frame: of the lengths in batches.
        length_key: under which batches have their lengths, [batch].
        config: what config.json says besides, by the names of flags; a run that goes on must have the same.
        notes: what it says besides that may change.
        check_inputs: checks the files behind the batches again, after one could not be read; raises UserError.
        names_of: (epoch, indices of its batch) -> names of the mixtures; epoch None: of the validation set.
        pictures: (folder, step) -> None, writes summaries inside the default summary writer.
        fixed_lengths: all training batches have one length.
        count_macs: multiply-accumulates of a forward pass on a batch; None: nn.training.cost counts them.
        least_loss, largest_loss: see TrainStep.
        evaluate: () -> {name: mean} of validation besides, with the averaged weights in place; for what takes so long
            that it is not done for all of the validation set. The score may be among these.
        validate_epochs: epochs between validations.
        resume_goes_on: --resume_model goes on at the step and in the schedule of the checkpoint; otherwise it starts at
            step 1 with its weights and optimiser, as the original of Deep CASA does.
    """

    system: str
    model: Any
    optimizer: Any
    objective: Callable
    training_batches: Callable
    validation_batches: Callable
    epochs: Epochs
    rule: Any
    score: str
    higher_is_better: bool
    worst_score: float
    seconds_per_frame: float
    config: dict = dataclasses.field(default_factory=dict)
    notes: dict = dataclasses.field(default_factory=dict)
    check_inputs: Callable = lambda: None
    names_of: Callable = lambda epoch, indices: [f"line {i + 1}" for i in indices]
    pictures: Callable = lambda folder, step: None
    fixed_lengths: bool = False
    length_key: str = "frames"
    count_macs: Callable | None = None
    least_loss: float | None = None
    largest_loss: float | None = None
    evaluate: Callable = dict
    validate_epochs: int = 1
    resume_goes_on: bool = True


class DrawnData:
    """What the data of all systems have in common.

    Attributes:
        training: mixtures on disk; or None, and then
        pool: recordings that are mixed anew in every epoch.
        validation: mixtures on disk.
        examples: in an epoch.
        batch_size: of the global batch.

    Those with a pool have `drawn_files`: (epoch, count) -> paths of the pool, and numbers of those that the `count`
    mixtures of the epoch are made of, int64 [count, files]; below 0: none.
    """

    training = pool = validation = None

    def names_of(self, epoch, indices):
        """Names of the mixtures that have these indices in the batches of an epoch; None: in those of validation."""
        if epoch is None:
            return [self.validation.names[index] for index in indices]
        if self.pool is None:
            return [self.training.names[index] for index in indices]
        paths, files = self.drawn_files(epoch, self.examples // self.batch_size * self.batch_size)
        return [" + ".join(paths[i] for i in files[index] if i >= 0) for index in indices]

    def check(self):
        """Looks at the headers of all files again. Raises UserError."""
        self.validation.check()
        (self.training or self.pool).check()


def require_corpus(segment):
    """Raises UserError unless --dynamic_mixing has a corpus to draw from, and a length to draw.

    Args:
        segment: samples of a mixture, from --segment_seconds.
    """
    if not FLAGS.corpus_folder or not segment:
        raise UserError("--dynamic_mixing needs --corpus_folder, and --segment_seconds above 0")


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes:
        folder: of checkpoints, config.json, flags.txt, pictures and TensorBoard logs.
        exp_name: start of the checkpoints' names.
        strategy: tf.distribute strategy that the model was made in.
        resume_model: checkpoint to start from, unless the folder holds one.
        load: the same, but its weights alone; a classifier of other classes starts anew.
        clip_norm, clip_percentile, clip_pieces, accumulate, ema_decay, scale_loss, jit_compile: see TrainStep.
        max_bad_steps: steps in a row whose loss or gradient is not finite, after which training stops.
        log_steps: steps between two lines of numbers.
        save_steps: steps between checkpoints within an epoch; 0: none.
        keep_checkpoints: how many of the newest to keep, besides the best; 0: all.
        finish: validate and save after the last step.
        dry_run: train a few steps, say what the whole would cost, and write nothing.
        profile_steps: (first, last) step of a TensorBoard profile, or None.
        weight_histograms: show the weights' distribution at every validation.
    """

    folder: str
    exp_name: str
    strategy: Any
    resume_model: str = ""
    load: str = ""
    clip_norm: float = 0.0
    clip_percentile: float = 0.0
    clip_pieces: bool = False
    accumulate: int = 1
    ema_decay: float = 0.0
    scale_loss: bool = False
    jit_compile: bool = False
    max_bad_steps: int = 20
    log_steps: int = 50
    save_steps: int = 0
    keep_checkpoints: int = 0
    finish: bool = True
    dry_run: bool = False
    profile_steps: tuple | None = None
    weight_histograms: bool = False


def seed_everything(seed):
    """Seeds Python, NumPy and Keras, so that a new model's weights depend on the seed alone."""
    keras.utils.set_random_seed(seed)
