"""A page in the browser on which a trained system separates what is dropped or recorded there.

    pip install -e ".[demo]"
    python nn/demo.py --resume_model exp/deep_casa/models [--resume_model "causal=exp/causal/models" ...]
    python nn/demo.py --resume_model exp/deep_casa/models --examples_folder corpus/2speakers/wav8k/min/tt/mix

Each --resume_model is a system to choose: the folder of its checkpoints, or its prefixes with commas between them;
"NAME=" before it names it. SpEx+ also asks for a recording of the voice to extract. The page is served on this machine
alone unless --host says otherwise, asks nothing of any other, and the recordings are deleted with it.
"""

import contextlib
import html
import os
import re
import shutil
import socket
import tempfile
import threading
import time
import traceback

from feat.base.script import run_script

import numpy as np
import soundfile
import tensorflow as tf
from absl import flags
from matplotlib.figure import Figure

from feat.base.files import UserError, brief
from feat.signals.audio import read_blocks, resample_blocks, wav_info
from feat.signals.stft import num_frames, num_samples, stft
from nn.systems.separator import Separator, list_inputs, output_paths, presence_lines, separate_file
from nn.training.pictures import decibels, draw_spectrogram, figure_png

FLAGS = flags.FLAGS

TITLE = "Separate voices"
EXAMPLES = 6
PICTURE_SECONDS = 0.032  # of a frame, about
COLUMNS = 1200  # of a picture, about its pixels: frames of longer recordings are averaged
DELETE_EVERY, DELETE_AFTER = 600, 3600  # seconds; uploads and results, while the page is being served
# Whatever gradio or a browser may think of, the page gets nothing from elsewhere and sends nothing there.
CONTENT_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:;"
    " style-src 'self' 'unsafe-inline'; base-uri 'self'; form-action 'self'"
)
STYLE = """
.gradio-container { max-width: 1080px !important; margin: auto !important; }
.picture img { width: 100%; height: 100%; object-fit: fill; }
.player audio { margin-block: 12px; }
.dark .player audio { color-scheme: dark; }
#separate { width: 100% !important; }
footer { display: none !important; }
"""


def import_gradio(folder):
    """The package, told to keep its files in `folder` and to leave the network alone.

    Raises:
        UserError: it is not installed.
    """
    os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    try:
        import gradio
    except ImportError as error:
        raise UserError(f'the page needs gradio ({error}): pip install -e ".[demo]"') from error
    return gradio


# Systems and examples -----------------------------------------------------------------------------


def name_systems(given):
    """{name: [prefix or folder]} of the values of --resume_model.

    Raises:
        UserError: there is none, or two have one name.
    """
    if not given:
        raise UserError("--resume_model is missing: the folder of a system's checkpoints, once for each system")
    systems = {}
    for value in given:
        name, equals, paths = value.partition("=")
        if not equals or os.path.exists(value):
            paths = value
            # exp/<exp_name>/models/<time_stamp>/<checkpoint>: the experiment says most.
            match = re.search(r"([^/]+)/models(/|$)", os.path.abspath(paths.split(",")[0]))
            name = match[1] if match else os.path.basename(os.path.abspath(paths))
        if name in systems:
            raise UserError(
                f"--resume_model {value}: there is a system {name} already; name them: --resume_model NAME={paths}"
            )
        systems[name] = paths.split(",")
    return systems


def find_examples(folder):
    """Up to EXAMPLES recordings below a folder, spread over it; mixtures alone if it has folders named mix."""
    found = [path for path, _ in list_inputs([folder])]
    mixtures = [path for path in found if os.path.basename(os.path.dirname(path)) == "mix"]
    found = mixtures or found
    return [found[i] for i in np.unique(np.linspace(0, len(found) - 1, EXAMPLES).round().astype(int))]


# Sound and pictures -------------------------------------------------------------------------------


def write_mixture(path, output, channels=None):
    """Writes what is separated of a recording, the mean of its channels or all `channels` of it, as 16-bit wav."""

    def blocks():
        parts = range(channels) if channels else [None]
        return map(np.stack, zip(*(read_blocks(path, part) for part in parts)))

    peak = max(float(np.max(np.abs(block), initial=0)) for block in blocks())
    with soundfile.SoundFile(output, "w", wav_info(path).sample_rate, channels or 1, "PCM_16", format="WAV") as file:
        for block in blocks():
            file.write(block.T / max(peak, 1.0))


def mean_magnitude(path, sample_rate, fft_size, hop_size):
    """Magnitudes of a recording at a system's rate, [about COLUMNS or fewer, bins]: each the RMS of some frames."""
    blocks = resample_blocks(read_blocks(path), wav_info(path).sample_rate, sample_rate)
    samples = np.concatenate(list(blocks))
    samples = np.pad(samples, (0, max(0, fft_size - len(samples))))
    frames = num_frames(len(samples), fft_size, hop_size)
    each = -(-frames // COLUMNS)
    columns = []
    for first in range(0, frames, 100 * each):
        count = min(100 * each, frames - first)
        piece = samples[first * hop_size :][: num_samples(count, fft_size, hop_size)]
        power = np.abs(stft(piece, fft_size, hop_size)) ** 2
        starts = np.arange(0, count, each)
        columns.append(np.add.reduceat(power, starts) / np.diff([*starts, count])[:, None])
    return np.sqrt(np.concatenate(columns))


def spectrogram_png(path, magnitude, largest, seconds, sample_rate):
    """Writes the picture of magnitudes [columns, bins], in dB below `largest`."""
    figure = Figure(figsize=(8, 1.9), layout="constrained")
    axis = figure.subplots()
    draw_spectrogram(axis, decibels(magnitude, largest), seconds, sample_rate)
    axis.set_xlabel("s", fontsize=9, color="gray")
    axis.set_ylabel("kHz", fontsize=9, color="gray")
    axis.tick_params(labelsize=9, colors="gray")
    axis.spines[:].set_visible(False)
    # On a light page and on a dark one.
    figure.patch.set_alpha(0)
    with open(path, "wb") as file:
        file.write(figure_png(figure, dpi=120))


def separate_recording(separator, path, folder, show, enrolment=None):
    """Separates a recording into wavs and pictures in a folder.

    Args:
        separator: Separator.
        path: the recording.
        folder: for the outputs.
        show: makes the progress bar, see separate_file.
        enrolment: path of a recording of the wanted talker, for systems that need it.

    Returns:
        ([(wav, png)] of the mixture and every talker, a line about it).

    Raises:
        UserError: a recording cannot be used.
    """
    info = wav_info(path)
    name = os.path.splitext(os.path.basename(path))[0]
    begin = time.perf_counter()
    outputs = output_paths(folder, name, separator.talkers, [None])
    voice = separator.enrol(enrolment if separator.system.ENROLMENT else None)
    factor, confidences = separate_file(separator, path, outputs, show=show, voice=voice)
    took = time.perf_counter() - begin
    mixture = os.path.join(folder, name + "_mixture.wav")
    write_mixture(path, mixture, separator.channels)
    wavs = [mixture, *outputs.values()]
    rate = separator.sample_rate
    fft_size = 2 ** round(np.log2(PICTURE_SECONDS * rate))
    magnitudes = [mean_magnitude(wav, rate, fft_size, fft_size // 4) for wav in wavs]
    pictures = [os.path.splitext(wav)[0] + ".png" for wav in wavs]
    for picture, magnitude in zip(pictures, magnitudes):
        spectrogram_png(picture, magnitude, magnitudes[0].max(), info.seconds, rate)
    channels = "1 channel" if info.channels == 1 else f"the mean of {info.channels} channels"
    if separator.channels:
        channels = "two ears"
    line = f"{info.seconds:.1f} s at {info.sample_rate} Hz, {channels}, separated in {took:.1f} s"
    if factor < 1:
        line += f"; the talkers were made quieter by {-20 * np.log10(factor):.1f} dB, together, to fit 16 bits"
    about = [text.removeprefix(path + ": ") for text in presence_lines(separator.system, path, confidences)]
    return list(zip(wavs, pictures)), "; ".join([line, *about]) + "."


# The page -----------------------------------------------------------------------------------------


class PageBar:
    """The progress bar of separate_file, shown on the page."""

    def __init__(self, report, total):
        self.report, self.total, self.done = report, total, 0

    def __enter__(self):
        self.update(0)
        return self

    def __exit__(self, *error):
        pass

    def update(self, count=1):
        self.done += count
        self.report(self.done / self.total, desc="Separating")


@contextlib.contextmanager
def page_errors(gradio, *paths):
    """Shows on the page what goes wrong with recordings."""

    def show(message):
        for path in filter(None, paths):
            message = message.replace(path, os.path.basename(path))
        return gradio.Error(html.escape(message), duration=None, title="Not separated", print_exception=False)

    try:
        yield
    except UserError as error:
        raise show(str(error)) from error
    except (tf.errors.OpError, OSError, MemoryError) as error:
        traceback.print_exc()
        raise show(brief(error) or "out of memory") from error


def what_comes_out(separator):
    if separator.system.ENROLMENT:
        return "one voice, by an example of it"
    return f"{separator.talkers} talkers" + (" of a stereo recording" if separator.channels else "")


def build_page(gradio, separators, examples=()):
    """The page.

    Args:
        gradio: the package.
        separators: {name: Separator}.
        examples: paths of recordings.

    Returns:
        gradio.Blocks, to be launched.
    """
    rows = 1 + max(separator.talkers for separator in separators.values())

    def needs_voice(name):
        return separators[name].system.ENROLMENT

    def separate(path, name, voice, progress=gradio.Progress()):
        if path is None:
            raise gradio.Error("Drop or record something first.", title="No recording", print_exception=False)
        separator = separators[name]
        if voice is None and needs_voice(name):
            raise gradio.Error("Drop or record the voice to extract too.", title="No voice", print_exception=False)
        with tempfile.TemporaryDirectory() as folder, page_errors(gradio, path, voice):
            shown, line = separate_recording(
                separator, path, folder, lambda _, name, total, unit: PageBar(progress, total), voice
            )
            visible = [gradio.Row(visible=row < len(shown)) for row in range(rows)]
            # The page takes copies before it comes back for more.
            yield [f"{name}: {line}", *visible, *sum(shown, ()), *[None] * (2 * (rows - len(shown)))]

    with gradio.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(DELETE_EVERY, DELETE_AFTER)) as page:
        gradio.Markdown(f"# {TITLE}\nDrop or record people who talk at the same time, and hear each alone.")
        with gradio.Row(equal_height=True):
            recording = gradio.Audio(
                label="Recording", type="filepath", editable=False, scale=3, buttons=[], elem_id="recording"
            )
            with gradio.Column(scale=1, min_width=220):
                choices = [
                    (f"{name} ({what_comes_out(separator)}, {separator.sample_rate / 1000:g} kHz)", name)
                    for name, separator in separators.items()
                ]
                system = gradio.Radio(choices, value=choices[0][1], label="System", elem_id="system")
                button = gradio.Button("Separate", variant="primary", scale=0, elem_id="separate")
        voice = gradio.Audio(
            label="The voice to extract, alone",
            type="filepath",
            editable=False,
            buttons=[],
            elem_id="voice",
            visible=needs_voice(choices[0][1]),
        )
        if any(map(needs_voice, separators)):
            system.change(lambda name: gradio.Audio(visible=needs_voice(name)), system, voice, api_visibility="private")
        if examples:
            labels = [os.path.basename(path) for path in examples]
            gradio.Examples([[path] for path in examples], [recording], example_labels=labels, api_visibility="private")
        status = gradio.Markdown("", elem_id="status")
        player = gradio.WaveformOptions(show_recording_waveform=False)  # the browser's, which streams long files
        boxes, parts = [], []
        for row in range(rows):
            label = f"Talker {row}" if row else "Mixture"
            with gradio.Row(visible=False, equal_height=True, elem_id=f"row{row}") as box:
                parts.append(
                    gradio.Audio(
                        label=label,
                        interactive=False,
                        type="filepath",
                        scale=2,
                        buttons=["download"],
                        waveform_options=player,
                        min_width=280,
                        elem_classes="player",
                    )
                )
                parts.append(
                    gradio.Image(
                        show_label=False,
                        interactive=False,
                        type="filepath",
                        buttons=[],
                        scale=3,
                        height=150,
                        min_width=320,
                        elem_classes="picture",
                        alt_text=f"Spectrogram of the {label.lower()}",
                    )
                )
            boxes.append(box)
        button.click(
            separate,
            [recording, system, voice],
            [status, *boxes, *parts],
            show_progress_on=recording,
            trigger_mode="always_last",  # pressed again before the end, it is not forgotten
            concurrency_limit=1,
            api_visibility="private",
        )
    return page


def require_port(host, port):
    """Raises UserError unless it can be served on, before anything slow is done."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host} --port {port}: cannot be served on ({error}); choose another") from error


def serve(gradio, page, host, port):
    """Serves a page until Ctrl-C or SIGTERM."""

    class Policy:
        """Adds CONTENT_POLICY to every answer."""

        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            async def send_with_policy(message):
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], (b"content-security-policy", CONTENT_POLICY.encode())]
                await send(message)

            await self.app(scope, receive, send_with_policy)

    from starlette.middleware import Middleware  # comes with gradio

    theme = gradio.themes.Default(
        primary_hue="indigo", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["monospace"]
    )
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
        theme=theme,
        css=STYLE,
        footer_links=[],
        run_history=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        app_kwargs={"middleware": [Middleware(Policy)]},
    )
    print(f"http://{host}:{port}   Ctrl-C ends it", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        page.close(verbose=False)


def main(argv):
    systems = name_systems(FLAGS.resume_model)
    require_port(FLAGS.host, FLAGS.port)
    examples = find_examples(FLAGS.examples_folder) if FLAGS.examples_folder else []
    folder = tempfile.mkdtemp(prefix="deep_casa_page_")
    try:
        gradio = import_gradio(folder)
        separators = {name: Separator(given) for name, given in systems.items()}
        for separator in separators.values():
            noise = np.random.default_rng(0).uniform(-0.1, 0.1, separator.sample_rate).astype(np.float32)
            heard = np.tile(noise, (separator.channels, 1)) if separator.channels else noise
            separator(heard, separator.sample_rate, noise if separator.system.ENROLMENT else None)  # compiles it
        serve(gradio, build_page(gradio, separators, examples), FLAGS.host, FLAGS.port)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    flags.DEFINE_multi_string("resume_model", [], "checkpoints of a system, [NAME=]FOLDER or [NAME=]PREFIX,PREFIX")
    flags.DEFINE_string("examples_folder", "", "recordings to offer; of a corpus its mixtures")
    flags.DEFINE_string("host", "127.0.0.1", "address to serve on; 0.0.0.0 lets other machines in")
    flags.DEFINE_integer("port", 7860, "port to serve on", lower_bound=1, upper_bound=65535)
    run_script(main)
