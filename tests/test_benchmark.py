"""The benchmark as a person runs it, and what it counts against hand counts and published sizes."""

import json

import numpy as np
import pytest
import tiny_deep_casa
from speech import make_corpus, run, run_here

from models.binaural_tasnet.network import MimoTasnet
from models.deep_casa.dense_unet import DenseUNet
from models.deep_casa.grouping import SequentialGrouping
from models.spex_plus.network import VARIANTS, SpexPlus
from nn.training.cost import count_macs, count_parameters

TINY = dict(fft_size=16, hop_size=8, n_layers=1, n_channels=2, seconds=0.1, repeats=2, json="cost.json")
TINY_TCN = dict(n_tcn_block=1, n_dilation_each_block=2, n_dilated_units=4, n_bottle=3, embedding_dim=2)


def report(folder, *flags, runner=run_here, **named):
    """The JSON of a run, which must succeed and print the same table."""
    ended = runner(folder, "nn/benchmark.py", *flags, **TINY | named)
    assert ended.returncode == 0, ended.stderr
    found = json.loads((folder / "cost.json").read_text())
    for key, value in found.items():
        for name in value if isinstance(value, dict) else [key]:
            assert name in ended.stdout
    assert {"processor", "cores", "threads", "python", "tensorflow", "keras"} <= set(found["machine"])
    return found


@pytest.mark.parametrize(
    "system, named",
    [
        ("sequential_grouping", TINY_TCN | dict(causal=True, batch_size=2)),
        ("spex_plus", TINY_TCN | dict(enrolment_seconds=0.2)),
    ],
)
def test_cost_of_a_tiny_system(tmp_path, system, named):
    # Threads can be chosen in a process of its own alone.
    runner = dict(runner=run, threads=1) if system == "spex_plus" else {}
    found = report(tmp_path, system=system, **runner, **named)
    assert found["system"] == system
    cost = found["cost"]
    assert all(np.isfinite(value) and value > 0 for value in cost.values())
    seconds = TINY["seconds"] * found["batch_size"]
    np.testing.assert_allclose(cost["real_time_factor"], cost["forward_wall_s"] / seconds)
    assert {"parameters", "gmacs_per_second_of_audio", "forward_cpu_s", "training_step_cpu_s"} < set(cost)
    assert {"training_step_wall_s", "peak_memory_mib"} < set(cost)
    assert ("extraction_cpu_s" in cost) == (system == "spex_plus")


def test_macs_of_spex_plus():
    """8.2 G for a second of mixture and one of enrolment, 0.56 G of them for the enrolment; 11,374,397 parameters.

    Less what the embedding adds to every frame in the original, 4 times 256 x 512 a frame.
    """
    model = SpexPlus(**VARIANTS["seed"])
    assert count_parameters(model) == 11_374_397
    both, mixture = model.count_macs(16000, 16000), model.count_macs(16000, 1640)
    np.testing.assert_allclose(both + 800 * 4 * 256 * 512, 8.2e9, rtol=0.02)
    np.testing.assert_allclose(both - mixture, 0.56e9, rtol=0.15)


MIMO_TASNET = TINY_TCN | dict(system="mimo_tasnet", seconds=0.2)
SPEX_PLUS = TINY_TCN | dict(system="spex_plus", variant="authors", enrolment_seconds=0.2)


@pytest.mark.parametrize(
    ("measure", "named", "names"),
    [
        ("features", {}, {"features_cpu_s", "loop_of_rfft_over_features", "loop_of_fft_over_features"}),
        ("input", {}, {"cached_over_in_memory", "on_the_fly_over_in_memory"}),
        ("loop", {}, {"loop_over_bare_step"}),
        ("devices", TINY_TCN | dict(system="sequential_grouping"), {"devices", "devices_over_one"}),
        ("input", SPEX_PLUS, {"on_the_fly_over_in_memory"}),
        ("loop", SPEX_PLUS, {"loop_over_bare_step"}),
        ("input", MIMO_TASNET, {"on_the_fly_over_in_memory"}),
    ],
)
def test_what_is_compared(tmp_path, measure, named, names):
    runner = run if measure == "devices" else run_here  # which makes its devices before TensorFlow starts
    ratios = report(tmp_path, measure=measure, batch_size=2, runner=runner, **named)[measure]
    assert set(ratios) == names
    # A step of the tiny net takes a few milliseconds, so that this only says that both were measured.
    assert all(0.05 < ratio < 100 for name, ratio in ratios.items() if "over" in name)


def test_streaming_by_block_size(tmp_path):
    found = report(tmp_path, measure="streaming", **TINY_TCN)["streaming"]
    sizes = [frames for frames in (1, 2, 4, 8, 16, 32) if frames * TINY["hop_size"] <= 8000 * TINY["seconds"]]
    names = {f"{frames}_frames_{what}" for frames in sizes for what in ("real_time_factor", "worst_block")}
    assert set(found) == names
    assert all(found[f"{n}_frames_worst_block"] >= found[f"{n}_frames_real_time_factor"] / 2 > 0 for n in sizes)


def test_streaming_of_spex_plus(tmp_path):
    found = report(tmp_path, measure="streaming", **SPEX_PLUS)["streaming"]
    assert set(found) == {f"{n}_frames_{what}" for n in (8, 16, 32, 64) for what in ("real_time_factor", "worst_block")}
    assert all(value > 0 for value in found.values())


def test_streaming_of_mimo_tasnet(tmp_path):
    found = report(tmp_path, measure="streaming", **MIMO_TASNET)["streaming"]
    sizes = (8, 16, 32, 64, 128)
    assert set(found) == {f"{n}_frames_{what}" for n in sizes for what in ("real_time_factor", "worst_block")}
    assert 0 < found["128_frames_real_time_factor"] < 1  # on whatever the tests run


@pytest.mark.parametrize(
    "build, parameters",
    [
        (lambda: DenseUNet(), 4_722_380),
        (lambda: DenseUNet(causal=True), 4_688_588),
        (lambda: SequentialGrouping(), 8_040_620),
        (lambda: MimoTasnet(), 1_159_808),
        (lambda: MimoTasnet("cross", 3), 1_176_192 + 8_320),
    ],
    ids=["dense_unet", "causal dense_unet", "sequential_grouping", "mimo_tasnet", "mimo_tasnet, cross, 3 talkers"],
)
def test_published_sizes(build, parameters):
    assert sum(int(np.prod(v.shape)) for v in build().trainable_variables) == parameters


def test_macs_of_mimo_tasnet():
    """1.13 G a second of 8 kHz, as the reference has it."""
    np.testing.assert_allclose(MimoTasnet(repeats=1, dilations=1).count_macs(8000) / 999, 2 * 47_488, rtol=1e-6)
    np.testing.assert_allclose(MimoTasnet().count_macs(8000), 1.13e9, rtol=0.005)


def test_macs_of_the_dense_unet_by_hand():
    n, talkers = 3, 2

    def block(rows, columns, width):
        inner = 9 * width * n + 9 * (width + n) * n + (width + 2 * n) * n + rows * n + 9 * (width + 3 * n) * n
        return rows * columns * inner + (rows - 2) * (columns - 2) * 9 * (width + 4 * n) * n

    # 65 bins and 4 frames become 74 rows and 12 columns. At that height convolutions are in row tiles.
    expected = (
        block(74, 12, 2)
        + 36 * 5 * 4 * n  # down
        + block(36, 5, n)
        + 34 * 3 * 4 * n * n  # up
        + block(68, 6, 2 * n)
        + 66 * 4 * (n * n + n * 2 * talkers)
    )
    mixture = np.zeros((2, 4, 65, 2), "float32")
    model = DenseUNet(channels=n, scales=1, bins=65)
    assert count_macs(model, lambda: model(mixture)) == 2 * expected


def test_macs_of_sequential_grouping_by_hand():
    units, bottleneck, dimension = 6, 4, 3
    model = SequentialGrouping(
        bins=9, blocks=2, dilations=1, units=units, bottleneck=bottleneck, embedding_dim=dimension, scales=1
    )
    frames, rows = 4, 10
    features = rows * 3 * 16 * sum(9 + 16 * i for i in range(4))
    residual = bottleneck * units + 3 * units + units * bottleneck
    expected = frames * (features + rows * 16 * bottleneck + 2 * residual + bottleneck * dimension)
    spectra = np.zeros((1, 2, frames, 9, 2), "float32")
    assert count_macs(model, lambda: model((spectra[:, 0], spectra))) == expected


def test_long_recordings(tmp_path):
    make_corpus(tmp_path, {"tt": 4}, voices=4)
    tiny_deep_casa.save(str(tmp_path / "models"), *tiny_deep_casa.nets(2, causal=False))
    found = report(tmp_path, measure="long", resume_model="models", dialogues=1, scenes=2, minutes=0.1)["long"]
    assert 0 <= found["scenes_in_their_channels"] <= 1 and np.isfinite(found["si_sdri_in_one_file_db"])
    assert 0 < found["memory_of_0.1_minutes_mib"] <= 1.1 * found["memory_of_1_minute_mib"]
