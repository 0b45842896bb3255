"""nn/demo.py in a browser, Debian's chromium without a screen: as a person uploads, listens and downloads."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import keras
import numpy as np
import pytest
import soundfile
import speech
import tensorflow as tf

from feat.signals.audio import read_blocks
from models.deep_casa.dense_unet import DenseUNet
from nn.checkpoints import ours as checkpoint
from nn.systems.separator import Separator

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
START_FLAGS = """
    --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --autoplay-policy=no-user-gesture-required --window-size=1280,1000
""".split()
PATIENCE = 60  # seconds


def make_system(folder, talkers):
    """A first stage of utterance-level training that was never trained: it needs no second one."""
    keras.utils.set_random_seed(talkers)
    model = DenseUNet(talkers=talkers, channels=2, scales=1, bins=33)
    model(tf.zeros((1, 8, 33, 2)))
    prefix = str(folder / "untrained_model.ckpt_step_1")
    checkpoint.save(prefix, model, keras.optimizers.SGD(), {})
    features = dict(sample_rate=8000, fft_size=64, hop_size=32)
    checkpoint.write_config(str(folder), "dense_unet", model, pit="utterance", **features)
    checkpoint.mark_best(prefix)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a system of two talkers, one of three, and recordings."""
    folder = tmp_path_factory.mktemp("demo")
    for name, talkers in (("two", 2), ("three", 3)):
        make_system(folder / "exp" / name / "models" / "run", talkers)
    (folder / "mix").mkdir()
    (folder / "tmp").mkdir()
    (folder / "cwd").mkdir()
    voices = np.stack([speech.voice(i, 0, 1.5, 16000) for i in range(3)], axis=1)
    soundfile.write(folder / "stereo.flac", voices[:, :2] + voices[:, 2:], 16000)
    soundfile.write(folder / "mix" / "example.wav", speech.voice(0, 1, 0.7) + speech.voice(1, 1, 0.7), 8000)
    soundfile.write(folder / "nan.wav", np.append(np.ones(800), np.nan), 8000, subtype="FLOAT")
    soundfile.write(folder / "nothing.wav", np.zeros(0), 8000)
    (folder / "text.wav").write_text("This is no sound.")
    return folder


@pytest.fixture(scope="module")
def webdriver():
    """Skips what needs a browser, before a server is started for it, if something is missing."""
    pytest.importorskip("gradio", reason='gradio is missing: pip install -e ".[test]"')
    for program in (CHROMIUM, DRIVER):
        if not os.path.exists(program):
            pytest.skip(f"{program} is missing: apt-get install chromium chromium-driver")
    return pytest.importorskip("selenium.webdriver", reason='selenium is missing: pip install -e ".[test]"')


@pytest.fixture(scope="module")
def address(webdriver, folder):
    """Where the page is served, by the script as a person starts it; it must leave nothing behind."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    models = [f"--resume_model={folder}/exp/two/models", f"--resume_model=Three voices={folder}/exp/three/models"]
    flags = [*models, f"--examples_folder={folder}/mix", f"--port={port}"]
    server = subprocess.Popen(
        speech.command("nn/demo.py", *flags, corpus_flags=False),
        cwd=folder / "cwd",
        env=os.environ | {"TMPDIR": str(folder / "tmp")},
        stdout=subprocess.PIPE,
        text=True,
    )
    # A server that hangs is ended, which ends the wait for its first line too.
    alarm = threading.Timer(3 * PATIENCE, server.kill)
    alarm.start()
    try:
        line = server.stdout.readline()
        alarm.cancel()
        assert f"http://127.0.0.1:{port}" in line
        yield f"http://127.0.0.1:{port}/"
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE) == 0
        assert os.listdir(folder / "tmp") == os.listdir(folder / "cwd") == []
    finally:
        alarm.cancel()
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def browser(webdriver, tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*START_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture
def page(browser, address):
    """The browser, on the page as one finds it; it must have asked nothing of anyone but its server."""
    browser.get(address)
    wait_for(lambda: one(browser, "input[type=file]"))
    yield browser
    assert foreign_requests(browser, address) == []


def foreign_requests(browser, address):
    """What the page asked of anyone but its server."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    assert any(request["request"]["url"] == address for request in sent)
    own = (address, "data:", "blob:" + address)
    return [
        request["request"]["url"]
        for request in sent
        if request["documentURL"].startswith("http") and not request["request"]["url"].startswith(own)
    ]


def wait_for(condition):
    """The first true value that `condition` gives."""
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < end, "nothing came in time"
        time.sleep(0.1)
    return value


def some(page, selector):
    return page.find_elements("css selector", selector)


def one(page, selector):
    return next(iter(some(page, selector)), None)


def text(page):
    return one(page, "body").text


def upload(page, path):
    one(page, "input[type=file]").send_keys(str(path))
    wait_for_recording(page)


def wait_for_recording(page):
    """Until the server has it: its player takes the place of the field that it was dropped on."""
    wait_for(lambda: one(page, "#recording [data-testid^=waveform]"))


def press_separate(page):
    # Not by place: what comes in above may move it away from under the pointer.
    page.execute_script("arguments[0].click()", one(page, "#separate"))


def separate_until(page, said):
    """Presses until the page says it.

    On a busy machine a press at the very moment that an example has come is lost now and then; a person presses again.
    """
    for _ in range(PATIENCE // 10):
        press_separate(page)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            if said in text(page):
                return
            time.sleep(0.1)
    raise AssertionError(f"the page does not say {said!r} but {text(page)!r}")


def players(page):
    """The audio elements of the rows on show."""
    return [player for player in some(page, "[id^=row] audio[src]") if player.is_displayed()]


def download(page, row):
    link = one(page, f"#row{row} a[download]")
    with urllib.request.urlopen(link.get_attribute("href")) as answer:
        return link.get_attribute("download"), answer.read()


def test_upload_listen_download(page, folder, tmp_path):
    upload(page, folder / "stereo.flac")
    press_separate(page)
    wait_for(lambda: "the mean of 2 channels, separated in" in text(page))
    wait_for(lambda: len(players(page)) == 3)
    for player in players(page):
        wait_for(lambda: player.get_property("duration") == pytest.approx(1.5))
        page.execute_script("arguments[0].play()", player)
        wait_for(lambda: player.get_property("currentTime") > 0.2)
    for picture in some(page, ".picture img"):
        wait_for(lambda: picture.get_property("naturalWidth") > 500)
    assert [picture.get_attribute("alt") for picture in some(page, ".picture img")] == [
        f"Spectrogram of the {what}" for what in ("mixture", "talker 1", "talker 2")
    ]
    mixture = np.concatenate(list(read_blocks(folder / "stereo.flac")))
    talkers = Separator(folder / "exp/two/models")(mixture, 16000)
    expected = {"stereo_mixture.wav": mixture, "stereo_s1.wav": talkers[0], "stereo_s2.wav": talkers[1]}
    scale = max(1, np.abs(talkers).max())
    for row, (name, samples) in enumerate(expected.items()):
        downloaded, content = download(page, row)
        assert downloaded == name
        (tmp_path / name).write_bytes(content)
        heard, rate = soundfile.read(tmp_path / name)
        assert rate == 16000
        np.testing.assert_allclose(heard, samples / (scale if row else 1), atol=2 / 32768)


def test_an_example_and_as_many_rows_as_talkers(page):
    for system, rows in (("Three voices", 4), ("two", 3)):
        label = next(label for label in some(page, "#system label") if system in label.text)
        label.click()
        wait_for(lambda: next((b for b in some(page, "button") if b.text == "example.wav"), None)).click()
        wait_for_recording(page)
        separate_until(page, f"{system}: 0.7 s at 8000 Hz, 1 channel, separated in")
        wait_for(lambda: len(players(page)) == rows)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("text.wav", "text.wav: not an audio file"),
        ("nan.wav", "nan.wav: holds NaN or infinite samples"),
        ("nothing.wav", "nothing.wav: holds 0 samples"),
        (None, "Drop or record something first"),
    ],
)
def test_says_what_is_wrong(page, folder, name, said):
    if name:
        upload(page, folder / name)
    press_separate(page)
    wait_for(lambda: said in text(page))
    assert not players(page)


def test_refuses(folder):
    def refuse(*flags):
        return speech.refuse(folder, "nn/demo.py", *flags, corpus_flags=False)

    assert "--resume_model is missing" in refuse()
    assert "nowhere: no checkpoint here" in refuse("--resume_model=nowhere")
    assert "no checkpoint marked best below it" in refuse("--resume_model=mix")
    two = "--resume_model=exp/two/models"
    assert "there is a system two already" in refuse(two, two)
    assert "no audio file below it" in refuse(two, "--examples_folder=exp")


def test_says_how_to_get_gradio(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)  # what Python has for a package that cannot be imported
    monkeypatch.setattr(os, "environ", os.environ.copy())
    said = speech.refuse(folder, "nn/demo.py", "--resume_model=exp/two/models", corpus_flags=False)
    assert 'pip install -e ".[demo]"' in said


def test_a_port_that_is_taken(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        flags = ["--resume_model=exp/two/models", f"--port={taken.getsockname()[1]}"]
        assert "cannot be served on" in speech.refuse(folder, "nn/demo.py", *flags, corpus_flags=False)


def test_the_spectrogram_of_a_long_recording_is_that_of_its_frames(folder):
    from nn import demo

    path = folder / "tone.wav"
    time_s = np.arange(10 * 8000) / 8000
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * np.where(time_s < 5, 1000, 3000) * time_s), 8000)
    magnitude = demo.mean_magnitude(path, 8000, 64, 32)
    assert len(magnitude) <= demo.COLUMNS
    peaks = magnitude.argmax(axis=1) * 8000 / 64
    half = len(peaks) // 2
    assert (peaks[: half - 2] == 1000).all() and (peaks[half + 2 :] == 3000).all()
    os.remove(path)
