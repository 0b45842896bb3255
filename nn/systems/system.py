"""The contract of a system: what the commands need to know about it, stated once.

`SYSTEM` in nn/systems/<system>/__init__.py is such a statement, and nn/systems/registry.py lists them all. A statement
names the modules of its package, which are imported when they are needed.
"""

import dataclasses
import importlib
import typing
from collections.abc import Callable
from typing import Any


class Exported(typing.NamedTuple):
    """A trained system, ready for export.

    Attributes:
        separator: keras.Model, float32 [1, samples], once for each input, -> [1, talkers, samples].
        portable: the same without complex numbers, which ONNX and LiteRT do not have. It may be `separator` itself.
        sample_rate: Hz.
        talkers: number of outputs.
        settings: what else export.json says.
        inputs: names of the inputs.
    """

    separator: Any
    portable: Any
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
        title: what messages call it, such as "Deep CASA".
        checkpoints: names that config.json gives to its networks.
        package: holds its modules. `recordings` has the class that processes recordings; `benchmark` has BENCHMARKS,
            {checkpoint name: Benchmark}, and may have define_flags(); `export`, if there is one, has
            export({checkpoint name: prefix}) -> Exported; `recipe` has RECIPE, the pipeline that
            nn/pipeline.py runs; `video`, if the system looks at faces, separates videos.
        recordings: name of the class in `<package>.recordings`, see nn.systems.trained.
        options: names of the arguments of this class that users may set by flags of the same names.
        define_options: (live) -> None, defines these flags and others that only this system needs, for nn/separate.py
            or for nn/live.py.
        exportable: the checkpoint without which it cannot be exported; None: it cannot be exported at all.
    """

    name: str
    title: str
    checkpoints: tuple
    package: str
    recordings: str
    options: tuple = ()
    define_options: Callable = lambda live: None
    exportable: str | None = None

    def load(self, module):
        """A module of its package."""
        return importlib.import_module(f"{self.package}.{module}")

    def make(self, checkpoints, **options):
        """The processor of recordings of trained networks.

        Args:
            checkpoints: {checkpoint name: prefix}.
            options: some of `options`.
        """
        return getattr(self.load("recordings"), self.recordings)(checkpoints, **options)
