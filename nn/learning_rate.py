"""Learning-rate rules and the arithmetic of epochs. A rule keeps its state in a LoopState."""

import dataclasses
import math

from feat.files import UserError


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


class OriginalRule:
    """Deep CASA's: at the start of every third epoch the rate falls if the best validation is long ago.

    Args:
        epochs: Epochs.
        rate: initial learning rate.
        decay: factor.
        patience: epochs since the best validation, 5.9 for stage 1, 3.9 for stage 2.
    """

    def __init__(self, epochs, rate, decay, patience):
        self.epochs = epochs
        self.initial = rate
        self.decay = decay
        examples = epochs.steps if epochs.whole else epochs.examples / epochs.batch_size
        self.patience_steps = int(patience * examples)

    def start_epoch(self, state):
        """Called before an epoch's first step, after its validation."""
        third = (state.step - 1) % (3 * self.epochs.steps) == 0 and state.step != 1
        if third and state.step - state.best_step >= self.patience_steps:
            state.rate *= self.decay

    def rate(self, state):
        """Learning rate of step `state.step`."""
        return state.rate


class ConstantRule:
    """A rate that rises in a straight line for the first steps, and stays.

    Args:
        rate: learning rate.
        warmup_steps: of the rise; 0: none.
    """

    def __init__(self, rate, warmup_steps=0):
        self.initial = rate
        self.warmup_steps = warmup_steps

    def start_epoch(self, state):
        """Nothing happens at epochs."""

    def rate(self, state):
        """Learning rate of step `state.step`."""
        state.rate = self.initial * min(1.0, state.step / max(1, self.warmup_steps))
        return state.rate


class AnnealedRule:
    """Linear warm-up, then a half cosine or a straight line down to zero at the last step.

    Args:
        epochs: Epochs.
        rate: highest learning rate.
        shape: "cosine" or "linear".
        warmup_steps: steps of the rise.
    """

    def __init__(self, epochs, rate, shape, warmup_steps=100):
        self.total = epochs.total
        self.initial = rate
        self.shape = shape
        self.warmup_steps = warmup_steps

    def start_epoch(self, state):
        """Nothing happens at epochs."""

    def rate(self, state):
        """Learning rate of step `state.step`."""
        done = (state.step - 1) / self.total
        fall = 0.5 * (1 + math.cos(math.pi * done)) if self.shape == "cosine" else 1 - done
        state.rate = self.initial * fall * min(1.0, state.step / max(1, self.warmup_steps))
        return state.rate


class OneCycleRule:
    """One rise and one fall of the rate along cosines, step by step, while Adam's beta_1 falls and rises.

    The rate starts at 1/25 of its highest value and ends at 1/250000 of it, where it stays.

    Args:
        total: steps of the cycle.
        rate: highest learning rate.
        rise: share of the cycle at whose end the rate is highest.
        betas: lowest and highest beta_1.

    Source: torch.optim.lr_scheduler.OneCycleLR, as ir4kgl/ss_dla uses it.
    """

    def __init__(self, total, rate, rise=0.2, betas=(0.85, 0.95)):
        self.highest = rate
        self.low = rate / 25
        self.floor = self.low / 1e4
        self.top = rise * total - 1
        self.end = total - 1
        self.betas = betas

    @property
    def initial(self):
        return self.low

    def start_epoch(self, state):
        """Nothing happens at epochs."""

    def rate(self, state):
        """Learning rate of step `state.step`."""
        state.rate = self._value(state.step - 1, self.low, self.highest, self.floor)
        return state.rate

    def beta_1(self, state):
        """Adam's beta_1 of step `state.step`."""
        lowest, highest = self.betas
        return self._value(state.step - 1, highest, lowest, highest)

    def _value(self, k, first, middle, last):
        """From `first` at k = 0 to `middle` at the top to `last` at the end."""
        if k < self.top:
            return _cosine(first, middle, k / self.top)
        return _cosine(middle, last, min(1.0, (k - self.top) / (self.end - self.top)))


def _cosine(start, end, done):
    """Half a cosine from start (done 0) to end (done 1)."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * done))


class CyclicRule:
    """The rate goes up and down between two values along straight lines, for ever.

    Args:
        low, high: rates.
        rise: steps up, and as many down.
        steps, validation_steps: of an epoch; the cycle goes on in validation too where validation_steps is not 0.

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks", 2017 (triangular), as
    vitrioil/Speech-Separation uses it. There validation moves the cycle as well.
    """

    def __init__(self, low, high, rise, steps=1, validation_steps=0):
        self.initial = low
        self.high = high
        self.rise = rise
        self.steps = steps
        self.validation_steps = validation_steps

    def start_epoch(self, state):
        """Nothing happens at epochs."""

    def rate(self, state):
        """Learning rate of step `state.step`."""
        done = state.step - 1
        done += done // self.steps * self.validation_steps
        place = done / self.rise % 2
        state.rate = self.initial + (self.high - self.initial) * min(place, 2 - place)
        return state.rate


class FallingRule:
    """A rate that `start_epoch` lowers, kept in the state."""

    def __init__(self, rate, higher_is_better, factor, patience, least, steps):
        self.initial = rate
        self.sign = -1.0 if higher_is_better else 1.0
        self.factor = factor
        self.patience = patience
        self.least = least
        self.steps = steps

    def rate(self, state):
        """Learning rate of step `state.step`."""
        return state.rate


class PlateauRule(FallingRule):
    """Halves the rate when the validation loss has not improved for epochs, and ends training when for longer.

    A loss counts as improvement when it is below (1 - 1e-4) times the best, whatever its sign: a negative loss
    may then be 0.01 % worse. The first is that of the untrained model.

    Args:
        rate: initial learning rate.
        higher_is_better: the score is the negative of a loss.
        factor: of each fall.
        patience: epochs without improvement that are borne; the next one makes the rate fall.
        stop: epochs in a row without a best validation after which training ends; 0: never.
        least: lowest rate.
        steps: of an epoch.

    Source: torch.optim.lr_scheduler.ReduceLROnPlateau, as gemengtju/SpEx_Plus uses it.
    """

    def __init__(self, rate, higher_is_better=False, factor=0.5, patience=2, stop=6, least=1e-8, steps=1):
        super().__init__(rate, higher_is_better, factor, patience, least, steps)
        self.stop = stop

    def start_epoch(self, state):
        """Called before an epoch's first step, after its validation; says whether training should end."""
        loss = self.sign * state.score
        if math.isnan(state.plateau_loss) or loss < state.plateau_loss * (1 - 1e-4):
            state.plateau_loss, state.bad_epochs = loss, 0
        else:
            state.bad_epochs += 1
        if state.bad_epochs > self.patience:
            lower = max(self.least, state.rate * self.factor)
            if state.rate - lower > 1e-8:
                state.rate = lower
            state.bad_epochs = 0
        return bool(self.stop) and state.step - state.best_step >= self.stop * self.steps


class AnchorRule(FallingRule):
    """Halves the rate at the third epoch that was worse than the anchor, since the anchor was last met or it fell.

    The anchor is the best loss, but up to the epoch `hold` the last one, whatever it was.

    Args:
        rate: initial learning rate.
        higher_is_better: the score is the negative of a loss.
        factor: of each fall.
        patience: worse epochs that are borne; the next one makes the rate fall.
        hold: epochs in which the rate is kept.
        least: lowest rate.
        steps: of an epoch.

    Source: speechbrain.nnet.schedulers.ReduceLROnPlateau, as recipes/BinauralWSJ0Mix uses it.
    """

    def __init__(self, rate, higher_is_better=False, factor=0.5, patience=2, hold=85, least=1e-8, steps=1):
        super().__init__(rate, higher_is_better, factor, patience, least, steps)
        self.hold = hold

    def start_epoch(self, state):
        """Called before an epoch's first step, after its validation."""
        done, loss = (state.step - 1) // self.steps, self.sign * state.score
        if done == 0:
            return
        if done <= self.hold:
            state.plateau_loss = loss
        elif loss <= state.plateau_loss:
            state.plateau_loss, state.bad_epochs = loss, 0
        elif state.bad_epochs < self.patience:
            state.bad_epochs += 1
        else:
            state.rate, state.bad_epochs = max(self.least, self.factor * state.rate), 0


def run_epochs(
    epochs,
    rule,
    state,
    *,
    train_step,
    validate,
    save,
    higher_is_better,
    save_steps=0,
    finish=True,
    every=1,
    after_step=lambda state: None,
):
    """The order of events of a training run.

    Before each epoch's first step: validation in every `every`th, checkpoint, then the rule. A run that goes on from a
    checkpoint does not validate again what the checkpoint was written after.

    Args:
        epochs: Epochs.
        rule: one of the rules above; training ends early where its start_epoch says so.
        state: LoopState, changed in place.
        train_step: called with (step, rate).
        validate: called with the step; gives the score.
        save: called with the state, and whether it is the best so far.
        save_steps: also save every so many steps; 0: at epochs only.
        every: epochs between validations.
        finish: validate and save after the last step too, which the original does not.
        after_step: called with the state, in which the step is done.
    """

    def reaches(score, best):
        return math.isnan(best) or (score >= best if higher_is_better else score <= best)

    def judge():
        score = float(validate(state.step))
        if reaches(score, state.best_score):
            state.best_score, state.best_step = score, state.step
        if reaches(score, state.marked_score):
            state.marked_score, state.marked_step = score, state.step
        state.validated_step, state.score = state.step, score
        save(state, state.marked_step == state.step)

    while state.step <= epochs.total:
        if epochs.starts(state.step):
            if (state.step - 1) // epochs.steps % every:
                save(state, False)
            elif state.validated_step != state.step:
                judge()
            if rule.start_epoch(state):
                break
        train_step(state.step, rule.rate(state))
        state.step += 1
        if save_steps and (state.step - 1) % save_steps == 0 and not epochs.starts(state.step):
            save(state, False)
        after_step(state)
    if finish and state.validated_step != state.step:
        judge()
