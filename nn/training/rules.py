"""Learning-rate rules and the arithmetic of epochs. A rule keeps its state in a LoopState."""

import math


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
