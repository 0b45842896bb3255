"""The system on noise."""

from feat.batches import common
from nn.systems.system import Benchmark
from toy_system.network import Toy
from toy_system.train import batch_of_noise, objective_of


def make():
    model = Toy()
    return model, objective_of(model)


BENCHMARKS = {
    "toy": Benchmark(
        make=make,
        batch=lambda settings, batch_size, seconds: batch_of_noise(batch_size, int(seconds * settings.sample_rate)),
        call=lambda model, batch: model(batch["mixture"]),
        count_macs=lambda model, batch: 6 * batch["mixture"].shape[0] * batch["mixture"].shape[1],
        sample_rate=lambda settings: settings.sample_rate,
        free_lengths=common.free_lengths,
        length_seconds=lambda settings: 1 / settings.sample_rate,
    )
}
