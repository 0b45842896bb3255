"""The contract of a system: what the commands need to know about it, stated once.

`SYSTEM` in nn/systems/<system>/declaration.py is such a statement, and nn/systems/registry.py lists them all.
"""

import dataclasses
import typing
from collections.abc import Callable
from typing import Any

import keras


class Exported(typing.NamedTuple):
    """A trained system, ready for export.

    Attributes:
        separator: float32 [1, samples], once for each input, -> [1, talkers, samples].
        portable: the same without complex numbers, which ONNX and LiteRT do not have. It may be `separator` itself.
        sample_rate: Hz.
        talkers: number of outputs.
        settings: what else export.json says.
        inputs: names of the inputs.
    """

    separator: keras.Model
    portable: keras.Model
    sample_rate: int
    talkers: int
    settings: dict
    inputs: tuple = ("mixture",)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """How nn/benchmark.py builds a network and feeds it with noise.

    Functions get `settings`, the feat.corpora.features.FeatureSettings of the flags.

    Attributes:
        make: () -> (model, objective), of the sizes that flags give.
        batch: (settings, batch size, seconds) -> {name: tensor}.
        call: (model, batch) -> outputs of the forward pass.
        count_macs: (model, batch) -> multiply-accumulates of `call`.
        sample_rate: settings -> Hz.
        free_lengths: batch -> {name: tf.TensorSpec} that the forward pass is compiled for.
        step_lengths: the same for the training step; None: as `free_lengths`.
        length_key: under which batches have their lengths.
        length_seconds: settings -> seconds of one of these lengths.
        timed: {name: (model, batch) -> tensor} of further calls whose CPU time is printed.
        files: (folder, settings, batch size, seconds) -> {kind of input: epoch -> batches}, on noise that is written to
            the folder; None: reading is not measured.
        stream: settings -> causal stream with random weights; None: streaming is not measured.
        block_frames: blocks of the streams, in hops.
        has_features: whether the network takes STFT features.
        cost_alone: nothing but `--measure cost` is possible.
    """

    make: Callable
    batch: Callable
    call: Callable
    count_macs: Callable
    sample_rate: Callable
    free_lengths: Callable
    step_lengths: Callable | None = None
    length_key: str = "samples"
    length_seconds: Callable | None = None
    timed: dict = dataclasses.field(default_factory=dict)
    files: Callable | None = None
    stream: Callable | None = None
    block_frames: tuple = (8, 16, 32, 64, 128, 256)
    has_features: bool = False
    cost_alone: bool = False


@dataclasses.dataclass(frozen=True)
class System:
    """A system, as the commands know it.

    Attributes:
        name: of its folders and commands, such as "deep_casa".
        recordings: the class that processes recordings, see nn.systems.registry. Its CHECKPOINTS are the names that
            config.json gives to the networks of the system, its NAME is what messages call it.
        define_options: defines the flags for `recordings.OPTIONS` that nn/separate.py has. Names that several systems
            share are defined by the first.
        export: {checkpoint name: prefix} -> Exported; None: the system cannot be exported.
        benchmarks: {checkpoint name: Benchmark}.
        define_benchmark_flags: defines the flags that `benchmarks` need besides those of all systems.
    """

    name: str
    recordings: Any
    define_options: Callable = lambda: None
    export: Callable | None = None
    benchmarks: dict = dataclasses.field(default_factory=dict)
    define_benchmark_flags: Callable = lambda: None

    @property
    def title(self):
        """What messages and documents call it, such as "Deep CASA"."""
        return self.recordings.NAME

    @property
    def checkpoints(self):
        """Names that config.json gives to its networks."""
        return self.recordings.CHECKPOINTS
