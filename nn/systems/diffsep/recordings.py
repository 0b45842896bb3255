"""Diffusion separation by a trained score network: of batches, and of recordings of any length.

A checkpoint's config.json has the process, the sample rate and the sampling that it was validated with; any of the
sampling can be chosen anew. Noise is decided by a key for every file, or window of one, see
models.diffsep.sampling.KeyedNoise, so that results do not depend on what else is separated, where and when.
"""

import dataclasses
import zlib

import numpy as np
import tensorflow as tf

from feat.base.files import UserError
from feat.base.graph import compiled
from models.diffsep.cdiffuse import CDiffuse
from models.diffsep.ncsnpp import ScoreModel
from models.diffsep.sampling import SOLVERS, ExponentialSolver, KeyedNoise, PredictorCorrector, file_key, score_of
from models.diffsep.sde import PROCESSES, normalise
from nn.checkpoints import ours as checkpoint
from nn.checkpoints import readers
from nn.recordings.windows import join, piece

NETWORKS = {"ncsnpp": ScoreModel, "cdiffuse": CDiffuse}
PREDICTOR_CORRECTOR = "reference"
SOLVER_NAMES = (PREDICTOR_CORRECTOR, *SOLVERS)
# What a configuration says where it says nothing.
PROCESS = dict(sde="MixSDE", d_lambda=2.0, sigma_min=0.05, sigma_max=0.5, avg_len=510, t_eps=0.03)
PUBLISHED = dict(
    steps=30,
    snr=0.5,
    corrector_steps=1,
    denoise=True,
    schedule=None,
    exact=False,
    solver=PREDICTOR_CORRECTOR,
    consistent=False,
    predictor="reverse_diffusion",
    corrector="ald2",
    reuse=False,
    fresh=0.0,
    t_start=1.0,
)
QUIETEST_WINDOW = (
    0.1  # windows are brought to one level, but no further up than if they were at this share of the file's
)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a reverse process is walked; None stands for what the checkpoint says.

    Attributes:
        steps: N.
        snr, corrector_steps, predictor, corrector, reuse: see models.diffsep.sampling.PredictorCorrector.
        denoise: give the mean of the last state.
        schedule: of models.diffsep.sde.SCHEDULES.
        exact: steps are as long as the schedule says.
        solver: PREDICTOR_CORRECTOR, or one of models.diffsep.sampling.SOLVERS, that need fewer calls.
        consistent: let the estimates sum to the mixture.
        fresh: see models.diffsep.sampling.ExponentialSolver.
        t_start: time to start at.
    """

    steps: int | None = None
    snr: float | None = None
    corrector_steps: int | None = None
    denoise: bool | None = None
    schedule: str | None = None
    exact: bool | None = None
    solver: str | None = None
    consistent: bool | None = None
    predictor: str | None = None
    corrector: str | None = None
    reuse: bool | None = None
    fresh: float | None = None
    t_start: float | None = None

    def filled(self, config):
        """The same with the values of a configuration, or the published ones, in place of None."""
        known = PUBLISHED | {name: value for name, value in config.get("sampling", {}).items() if name in PUBLISHED}
        missing = {name: value for name, value in known.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **missing)

    def unusual(self):
        """{name: value} of a filled one that result folders do not tell, where it is not the published one."""
        named = ("steps", "snr", "corrector_steps", "denoise", "schedule")
        values = dataclasses.asdict(self)
        return {name: values[name] for name, value in PUBLISHED.items() if name not in named and values[name] != value}

    def sampler(self, sde, t_eps):
        """models.diffsep.sampling.Sampler of a filled one. Raises UserError for what makes no sense."""
        common = dict(
            steps=self.steps, t_eps=t_eps, schedule=self.schedule or "plain", t_start=self.t_start,
            consistent=self.consistent,
        )  # fmt: skip
        try:
            if self.solver == PREDICTOR_CORRECTOR:
                names = ("exact", "predictor", "corrector", "snr", "corrector_steps", "denoise", "reuse")
                return PredictorCorrector(sde, **common, **{name: getattr(self, name) for name in names})
            return ExponentialSolver(sde, **common, solver=self.solver, fresh=self.fresh)
        except ValueError as error:
            raise UserError(f"sampling: {error}") from error


class Trained:
    """A trained network with its process.

    Args:
        source: checkpoint, ours or a PyTorch file of the reference.

    Attributes:
        system: of NETWORKS.
        model, sde: the network and its process.
        config: of the checkpoint.
        sample_rate: Hz.
        sources: in a mixture.
        enhancement: whether they are speech and noise.
        t_eps: shortest time.

    Raises:
        UserError: it is missing, or of another system.
    """

    def __init__(self, source):
        known = describe(source)
        self.source = source
        self.system, self.config = known["system"], known["config"]
        self.model = NETWORKS[self.system](**self.config["model"])
        readers.load_for_inference(source, self.system, self.model)
        self.sources, self.sample_rate, self.enhancement = (
            known[name] for name in ("sources", "sample_rate", "enhancement")
        )
        self.sde, self.t_eps = make_process(self.config, self.sources)


def describe(source):
    """What a checkpoint is of: {"system", "config", "sources", "sample_rate" in Hz, "enhancement"}.

    Raises:
        UserError: it is missing, or of another system.
    """
    reader = readers.open_reader(source)
    if reader.system not in NETWORKS:
        raise UserError(
            f"{source}: holds {reader.system}, but {' or '.join(NETWORKS)} is needed; give a checkpoint of DiffSep"
        )
    config = checkpoint.read_config(source)
    if config is None:
        settings, reader = readers.foreign_settings(source, reader.system)
        config = {"model": settings} | reference_config(getattr(reader, "config", {}))
    return {
        "system": reader.system,
        "config": config,
        "sources": config["model"].get("sources", 2),
        "sample_rate": config.get("sample_rate", 8000),
        "enhancement": config.get("task", "separation") == "enhancement",
    }


def make_process(config, sources):
    """(process, shortest time) of a configuration."""
    values = PROCESS | {name: config[name] for name in PROCESS if config.get(name) is not None}
    kind, t_eps = PROCESSES[values.pop("sde")], values.pop("t_eps")
    if kind is PROCESSES["MixSDE"]:
        del values["avg_len"]
    return kind(sources, **values), t_eps


def reference_config(config):
    """What config.json would say of a run of the reference, of its configuration; {} of none."""
    model = config.get("model") or {}
    sde, sampler = (model.get(name) or {} for name in ("sde", "sampler"))
    found = {name: sde[name] for name in ("d_lambda", "sigma_min", "sigma_max", "avg_len") if name in sde}
    kind = str(sde.get("_target_", "")).rsplit(".", 1)[-1]
    if kind in PROCESSES:
        found |= {"sde": kind, "task": "separation" if kind == "MixSDE" else "enhancement"}
    found |= {ours: model[theirs] for ours, theirs in (("sample_rate", "fs"), ("t_eps", "t_eps")) if theirs in model}
    sampling = dict(steps="N", snr="snr", corrector_steps="corrector_steps")
    return found | {"sampling": {ours: sampler[theirs] for ours, theirs in sampling.items() if theirs in sampler}}


class Reverse:
    """The reverse process of a trained network, compiled once for all lengths.

    Args:
        trained: Trained, or anything with its model, sde, config and t_eps.
        sampling: Sampling.
        states: also give the states on the way.
    """

    def __init__(self, trained, sampling=Sampling(), states=False):
        self.model, self.sde = trained.model, trained.sde
        self.predicts = trained.config.get("predicts", "score")
        self.sampling = sampling.filled(trained.config)
        self.sampler = self.sampling.sampler(self.sde, trained.t_eps)
        self.states = states
        signature = [tf.TensorSpec([None, None], tf.float32), tf.TensorSpec([None], tf.int32)]
        self._run = compiled(self._graph, *signature)

    @property
    def evaluations(self):
        """Calls of the network for a batch."""
        return self.sampler.evaluations

    def prepare(self):
        """Traces and optimises the graph now, on a little silence, which otherwise the first call does."""
        self(np.zeros((1, 256), np.float32), [0])
        return self

    def _graph(self, mixture, keys):
        noise = KeyedNoise(keys, self.sde.sources, tf.shape(mixture)[1])
        score = score_of(self.model, self.sde, mixture, self.predicts)
        return self.sampler(score, mixture, noise, states=self.states)

    def __call__(self, mixture, keys):
        """Separates normalised mixtures.

        Args:
            mixture: [batch, samples].
            keys: [batch], of models.diffsep.sampling.file_key.

        Returns:
            [batch, sources, samples]; with `states` also those of the way, [steps, batch, sources, samples].
        """
        found = self._run(tf.constant(mixture, tf.float32), tf.constant(keys, tf.int32))
        if self.states:
            return found[0].numpy(), found[1].numpy()
        return found.numpy()


def project(estimates, mixture):
    """Estimates [..., samples] as loud as they are in the mixture [..., samples], by least squares."""
    return (
        estimates * projection(np.sum(mixture * estimates, axis=-1), np.sum(estimates**2 + 1e-10, axis=-1))[..., None]
    )


def projection(products, energies):
    """Factors of `project`: products with the mixture by energies."""
    return products / np.maximum(energies, 1e-10)


class Diffusion:
    """DiffSep as a system of nn.systems.trained: talkers, or speech and noise, in recordings of any length.

    Args:
        checkpoints: {"ncsnpp" or "cdiffuse": prefix, or PyTorch file}.
        steps, snr, corrector_steps, solver: see Sampling.
        seed: of the noise.
    """

    NAME = "DiffSep"
    ENROLMENT = False
    FACES = False
    CHANNELS = None
    LATENCY = "window"
    causal = False

    def __init__(self, checkpoints, steps=None, snr=None, corrector_steps=None, solver=None, seed=0):
        (self.source,) = checkpoints.values()
        self.trained = Trained(self.source)
        sampling = Sampling(steps=steps, snr=snr, corrector_steps=corrector_steps, solver=solver)
        self.reverse = Reverse(self.trained, sampling)
        self.sample_rate = self.trained.sample_rate
        self.talkers = self.trained.sources
        self.hop_size = getattr(self.trained.model, "hop_size", 128)
        self.seed = seed

    def frames(self, samples):
        return -(-samples // self.hop_size)

    def spool_bytes(self, samples):
        """Of all sources, before their level is known."""
        return 4 * samples * self.talkers

    def separate(self, samples, windows, spool, bar=None, enrolment=None):
        """Sources, each as loud as it is in the recording; see nn.systems.trained.

        Talkers are held to their channels by what they are in the overlap of windows.
        """
        frames = self.frames(len(samples))
        length = min(frames * self.hop_size, windows.length * self.hop_size)
        deviation = _deviation(samples)

        def separated():
            for start in windows.starts(frames):
                first = start * self.hop_size
                # Silence behind a recording would have a share in its level.
                window = np.asarray(samples[first : min(first + length, len(samples))], np.float32)
                # By length and place, so that a change of level changes nothing else.
                key = file_key(self.seed, zlib.crc32(f"{len(samples)} {first}".encode()))
                estimates = self.window(window, key, deviation)
                yield first, piece(estimates, 0, length)
                if bar is not None:
                    bar.update(2)

        products, energies = np.zeros(self.talkers), np.full(self.talkers, 0.0)
        done, sizes = 0, []
        for block in join(separated(), match=not self.trained.enhancement):
            block = np.ascontiguousarray(block[:, : max(len(samples) - done, 0)], np.float32)
            mixture = np.asarray(samples[done : done + block.shape[1]], np.float64)
            products += block @ mixture
            energies += np.sum(block.astype(np.float64) ** 2 + 1e-10, axis=1)
            spool.write(block.data)
            sizes.append(block.shape[1])
            done += block.shape[1]
        factors = projection(products, energies)[:, None].astype(np.float32)
        spool.seek(0)
        for size in sizes:
            block = np.frombuffer(spool.read(4 * self.talkers * size), np.float32).reshape(self.talkers, size)
            yield factors * block

    def window(self, mixture, key, deviation=0.0):
        """Sources [sources, samples] of a window [samples], in the measure of the recording.

        Args:
            key: of its noise.
            deviation: of the whole recording.
        """
        centred, _, (_, measure) = normalise(mixture[None])
        own = float(measure[0, 0, 0])
        # A quiet window is a loud one's noise.
        level = max(own, QUIETEST_WINDOW * deviation)
        return self.reverse(np.asarray(centred) * np.float32(own / level), [key])[0] * level

    def stream(self, enrolment=None):
        """Raises UserError: every window is gone through many times."""
        raise UserError(f"{self.source}: DiffSep takes whole windows; separate recordings with nn/separate.py")


def _deviation(samples, size=1 << 18):
    """Standard deviation of [samples], read a piece at a time."""
    total = squares = 0.0
    for begin in range(0, len(samples), size):
        some = np.asarray(samples[begin : begin + size], np.float64)
        total += some.sum()
        squares += np.dot(some, some)
    mean = total / len(samples)
    return float(np.sqrt(max(0.0, squares / len(samples) - mean**2)))
