"""Pictures of diffusion separation: a metric over result folders, and the process itself.

python nn/systems/diffsep/figures.py --results results --metric si_sdr
    results/test_si_sdr.png: the metric against N, and against the size and the number of the corrector's steps
python nn/systems/diffsep/figures.py --marginals --output_folder figures
    means and deviations of the process over time
python nn/systems/diffsep/figures.py --percentiles results/RUN
    a bad, an average and a good file, from what nn/diffsep_evaluate.py --save_n -1 kept
"""

import glob
import json
import os

from feat.base.script import run_script

import numpy as np
from absl import flags

from feat.base.files import UserError, atomic_path, make_writable_directory
from feat.signals.audio import read_mono, wav_info
from feat.signals.stft import num_frames
from nn.systems.diffsep.results import file_mean, read_folder_name, read_results
from nn.training.pictures import plt

STATES = 6  # of the way, in the evolution figure
FFT_SIZE, HOP = 256, 128
RANGE_DB = 75.0
SWEPT = {"steps": "N", "snr": "size of the corrector's steps", "corrector_steps": "steps of the corrector"}
BUCKETS = (0, 10, 90, 100)  # percentiles between which examples are bad, middling and good


def spectrogram(signal):
    """[samples] -> [frames, bins], dB."""
    count = num_frames(max(len(signal), FFT_SIZE), FFT_SIZE, HOP)
    padded = np.pad(np.asarray(signal, np.float64), (0, max(0, FFT_SIZE - len(signal))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT_SIZE)[::HOP][:count]
    return 20 * np.log10(np.abs(np.fft.rfft(frames * np.hanning(FFT_SIZE))) + 1e-10)


def draw(axis, signal, sample_rate, top=0.0):
    """Spectrogram of a signal on an axis, RANGE_DB below `top`; gives the image, for a colour bar."""
    extent = (0, len(signal) / sample_rate, 0, sample_rate / 2000)
    return axis.imshow(
        spectrogram(signal).T - top, origin="lower", aspect="auto", extent=extent, vmin=-RANGE_DB, vmax=0, cmap="magma"
    )


def evolution_figure(states, references, sample_rate, title=""):
    """The way from the mixture to the sources, a row a source: STATES states, then the clean source.

    Args:
        states: [steps, sources, samples], in the order of the reverse process.
        references: [sources, samples].

    Returns:
        matplotlib figure.
    """
    steps, sources = len(states), len(references)
    chosen = np.linspace(0, steps - 1, STATES).round().astype(int)
    figure, axes = plt.subplots(
        sources, STATES + 1, figsize=(20, 2 * sources), squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    rng = np.random.default_rng(0)
    for row, reference in enumerate(references):
        # Digital silence would have no level.
        clean = reference + 1e-10 * rng.standard_normal(len(reference))
        shown = [*(states[i, row] for i in chosen), clean]
        top = max(spectrogram(signal).max() for signal in shown)
        for column, signal in enumerate(shown):
            image = draw(axes[row, column], signal, sample_rate, top)
            if row == 0:
                left = 1 - chosen[column] / max(steps - 1, 1) if column < STATES else None
                axes[row, column].set_title("clean" if left is None else f"t = {left:.2f}", fontsize=10)
        axes[row, 0].set_ylabel("kHz", fontsize=8)
        figure.colorbar(image, ax=axes[row], label="dB", pad=0.01)
    for axis in axes[-1]:
        axis.set_xlabel("s", fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def save(figure, path):
    """Writes a figure, whole or not at all, in the format of the name."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)
    plt.close(figure)
    return path


# Sweeps -------------------------------------------------------------------------------------------


def read_sweep(folder, split, metric):
    """[{options of the folder, "value"}] of the result folders below `folder` that have this split and metric."""
    rows = []
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*", f"{split}_summary*.json"))):
        options = read_folder_name(os.path.dirname(path))
        with open(path, encoding="utf-8") as file:
            value = json.load(file).get(metric)
        if options is not None and value is not None:
            rows.append(options | {"value": value})
    return rows


def sweep_figure(rows, metric):
    """The metric against each option that takes several values, a line for what else is the same."""
    swept = [name for name in SWEPT if len({row[name] for row in rows}) > 1]
    if not swept:
        return None
    figure, axes = plt.subplots(1, len(swept), figsize=(4.5 * len(swept), 3.5), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], swept):
        lines = {}
        for row in rows:
            others = tuple(sorted((k, str(v)) for k, v in row.items() if k not in (name, "value")))
            lines.setdefault(others, []).append((row[name], row["value"]))
        lines = {others: points for others, points in lines.items() if len(points) > 1}
        differing = {k for others in lines for k, v in others if any(dict(x).get(k) != v for x in lines)}
        for others, points in lines.items():
            label = ", ".join(f"{k} {v}" for k, v in others if k in differing)
            axis.plot(*zip(*sorted(points)), marker="o", label=label or None)
        axis.set_xlabel(SWEPT[name])
        axis.set_ylabel(metric)
        axis.grid(alpha=0.3)
        if differing:
            axis.legend(fontsize=6)
    return figure


# The process --------------------------------------------------------------------------------------


def marginals_figure(sde, points=200):
    """Means and deviations of two sources, +1 and -1, over time, and the eigenvalues of their covariance."""
    time = np.linspace(0, 1, points)
    decay = np.exp(-sde.d_lambda * time)
    common, apart = (np.asarray(values) for values in sde.variances(time.astype(np.float32)))
    deviation = np.sqrt((common + apart) / 2)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for sign, colour in ((1, "tab:blue"), (-1, "tab:orange")):
        left.plot(time, sign * decay, color=colour)
        left.fill_between(time, sign * decay - deviation, sign * decay + deviation, color=colour, alpha=0.25)
    left.set_ylabel("mean and deviation")
    right.plot(time, np.sqrt(common), label="what sources share")
    right.plot(time, np.sqrt(apart), label="their differences")
    right.set_ylabel("deviation of the noise")
    right.legend(fontsize=8)
    for axis in (left, right):
        axis.set_xlabel("t")
        axis.grid(alpha=0.3)
    return figure


# Examples -----------------------------------------------------------------------------------------


def choose_examples(results, metric, seed=0):
    """{"bad", "middling", "good": index} of files drawn from between the percentiles BUCKETS of their metric."""
    values = {index: file_mean(entry.get(metric)) for index, entry in results.items()}
    values = {index: value for index, value in values.items() if np.isfinite(value)}
    if not values:
        return {}
    limits = np.percentile(list(values.values()), BUCKETS)
    rng, chosen = np.random.default_rng(seed), {}
    for name, low, high in zip(("bad", "middling", "good"), limits, limits[1:]):
        inside = [index for index, value in values.items() if low <= value <= high]
        if inside:
            chosen[name] = inside[rng.integers(len(inside))]
    return chosen


def examples_figure(folder, split, results, chosen, metric):
    """Mixture, estimates and targets of chosen files, a row each."""
    rows = []
    for name, index in chosen.items():
        stem = os.path.join(folder, "wav", split, f"{int(index):04d}")
        paths = [path for path in (f"{stem}.{kind}.wav" for kind in ("mix", "enh0", "enh1", "tgt0", "tgt1"))]
        paths = [path for path in paths if os.path.exists(path)]
        if not paths:
            raise UserError(f"{stem}.mix.wav: no such file; evaluate with --save_n -1")
        rows.append((f"{name}: {metric} {file_mean(results[index][metric]):.2f}", paths))
    columns = max(len(paths) for _, paths in rows)
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(3.6 * columns, 2 * len(rows)), squeeze=False, layout="constrained"
    )
    for line, (title, paths) in zip(axes, rows):
        signals = [read_mono(path) for path in paths]
        top = max(spectrogram(signal).max() for signal in signals)
        for axis, path, signal in zip(line, paths, signals):
            draw(axis, signal, wav_info(path).sample_rate, top)
            axis.set_title(os.path.basename(path).removesuffix(".wav"), fontsize=8)
        line[0].set_ylabel(title, fontsize=8)
    return figure


# Script -------------------------------------------------------------------------------------------


def define_flags():
    flags.DEFINE_string("results", None, "folder with result folders, to plot a metric over them")
    flags.DEFINE_string("percentiles", None, "a result folder, to show a bad, a middling and a good file of")
    flags.DEFINE_bool("marginals", False, "draw the process over time")
    flags.DEFINE_string("split", "test", "split of the results")
    flags.DEFINE_string("metric", "si_sdr", "entry of the results")
    flags.DEFINE_string("output_folder", None, "takes the pictures; default: where the results are")
    flags.DEFINE_float("d_lambda", 2.0, "of --marginals")
    flags.DEFINE_float("sigma_min", 0.05, "of --marginals")
    flags.DEFINE_float("sigma_max", 0.5, "of --marginals")
    flags.DEFINE_integer("seed", 0, "draws the files of --percentiles")
    flags.DEFINE_enum("format", "png", ["png", "pdf", "svg"], "of the pictures")


def main(_):
    values = flags.FLAGS
    if not (values.results or values.percentiles or values.marginals):
        raise UserError("give --results, --percentiles or --marginals; see the examples in --help")
    folder = values.output_folder or values.results or values.percentiles or "."
    make_writable_directory(folder)
    if values.results:
        rows = read_sweep(values.results, values.split, values.metric)
        figure = sweep_figure(rows, values.metric) if rows else None
        if figure is None:
            raise UserError(
                f"{values.results}: {len(rows)} result folders with {values.metric} of {values.split}, alike in all"
                " that is plotted; evaluate with several -N, --snr or --corrector_steps (--tag is no hindrance)"
            )
        print(save(figure, os.path.join(folder, f"{values.split}_{values.metric}.{values.format}")))
    if values.percentiles:
        results = read_results(os.path.join(values.percentiles, f"{values.split}.json"))
        chosen = choose_examples(results, values.metric, values.seed)
        if not chosen:
            raise UserError(f"{values.percentiles}: no file has {values.metric}; give another --metric")
        figure = examples_figure(values.percentiles, values.split, results, chosen, values.metric)
        print(save(figure, os.path.join(folder, f"{values.split}_examples.{values.format}")))
    if values.marginals:
        from models.diffsep.sde import MixSDE

        sde = MixSDE(2, values.d_lambda, values.sigma_min, values.sigma_max)
        print(save(marginals_figure(sde), os.path.join(folder, f"marginals.{values.format}")))


if __name__ == "__main__":
    define_flags()
    run_script(main)
