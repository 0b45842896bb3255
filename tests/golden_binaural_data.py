"""Procedures of the golden cases on the data of Binaural TasNet, see test_golden.py."""

import numpy as np
import soundfile
import tensorflow as tf

from feat import binaural_mix
from feat.batches import augment, binaural_tasnet
from feat.corpora import binaural_scenes
from feat.signals import audio, binaural, hrir
from feat.signals.mixing import MODES

PROCEDURES = {}
RATES = (8000, 16000)


def procedure(kind):
    def register(function):
        PROCEDURES["binaural", kind] = function
        return function

    return register


@procedure("data")
def data(case, folder):
    """Has the files written as a person does in parity, and compares steps on the way."""
    config = case.config
    numbers = range(1, len(config["azimuth"]) + 1)
    kind = "noise" if "in/noise" in case else "reverb" if "in/brir1" in case else f"{len(numbers)}speakers"
    for c in numbers:
        audio.write_pcm16(folder / f"utt{c}.wav", case[f"in/utt{c}"], config.get("speech_rate", 16000))
    scene = binaural_scenes.Scene(
        config["output_name"].removesuffix(".wav"),
        tuple(f"utt{c}.wav" for c in numbers),
        write_place(case, folder),
        tuple(config["azimuth"]),
        tuple(config.get("elevation_index", ())),
        gains=in_variants(lambda tag: np.array(config[f"scaling_{tag}"]) * config.get("scaling_wham_speech", 1)),
        noise=write_noise(case, folder) if kind == "noise" else None,
    )
    tree = binaural_mix.BinauralTree(folder, folder / "out", kind, RATES, MODES, parity=True)
    binaural_mix.make_binaural(tree, {"tt": [scene]}, {}, num_workers=1)
    for key, theirs in case.named("out").items():
        parts = key.split("/")
        if parts[0] == "step":
            ours = step(case, parts[1], scene)
            case.check(key, ours, theirs, least=1e-9)
            continue
        path = folder / "out" / kind / parts[0] / parts[1] / "tt" / parts[2] / config["output_name"]
        ours, rate = soundfile.read(path, dtype=theirs.dtype.name)
        assert rate == {"wav8k": 8000, "wav16k": 16000}[parts[0]] and soundfile.info(path).channels == 2
        if theirs.dtype == np.int16:
            np.testing.assert_array_equal(ours, theirs, err_msg=key)
        else:
            case.check(key, ours, theirs, least=1e-6)


def in_variants(value):
    return {(rate, mode): value(f"{rate // 1000}k") for rate in RATES for mode in MODES}


def write_place(case, folder):
    """The listener's folder or that of a room, with the responses of the case in it."""
    config = case.config
    place = folder / (config.get("subject") or config["reverb_time"])
    for c, azimuth in enumerate(config["azimuth"], start=1):
        if "in/brir1" in case:
            path = place / f"CATT_{place.name}_{azimuth}.wav"
            audio.write_pcm16(path, case[f"in/brir{c}"], config.get("brir_rate", 16000))
            continue
        for ear in hrir.EARS:
            responses = np.zeros((len(hrir.ELEVATIONS), 200), np.int16)
            responses[config["elevation_index"][c - 1]] = case[f"in/hrir{c}_{ear}"]
            path = place / f"{'neg' if azimuth < 0 else ''}{abs(azimuth)}az{ear}.wav"
            audio.write_pcm16(path, responses, config.get("hrir_rate", hrir.CIPIC_RATE_HZ))
    return str(place) if "in/brir1" in case else hrir.Head(place.name, "cipic", str(place))


def write_noise(case, folder):
    config = case.config
    audio.write_float(folder / "noise.wav", case["in/noise"], config.get("noise_rate", 16000))
    draw = binaural.NoiseDraw(config["speech_start_sample_16k"], 0, 0.0, 0, 0, len(case["in/noise"]))
    gain = in_variants(lambda tag: config["scaling_wham_noise"])
    return binaural_scenes.Noise("file", draw, str(folder / "noise.wav"), gain=gain)


def step(case, name, scene):
    """What the reference had on the way to 8 and 16 kHz, in 16-bit numbers."""
    kind, *parts = name.split("_")
    if kind.startswith("hrir"):
        c, rate = int(kind[4:]) - 1, 1000 * int(parts[1][:-1])
        return scene.place.response(scene.azimuths[c], scene.elevations[c], rate)[:, hrir.EARS.index(parts[0])]
    c, rate = int(parts[-1]) - 1, 1000 * int(parts[0][:-1])
    sources = [
        audio.resample(case[f"in/utt{c + 1}"].astype(float), 16000, rate) * gain
        for c, gain in enumerate(scene.gains[rate, "min"])
    ]
    if kind == "scaled":
        return sources[c]
    source = binaural.fix_length(sources, parts[1])[c]
    if "in/brir1" in case:
        responses = audio.resample(case[f"in/brir{c + 1}"].astype(float), 16000, rate)
        return binaural.render(source, responses, room=True, parity=True)[0]
    return binaural.render(source, scene.place.response(scene.azimuths[c], scene.elevations[c], rate))[0]


@procedure("noise_sampler")
def noise_sampler(case, folder):
    config = case.config
    rng = np.random.RandomState(config["seed"])
    draws = [binaural.draw_noise(n, config["file_lengths"], rng) for n in config["utterance_lengths"]]
    rows = [[d.before, d.after, d.snr_db, d.file, d.begin, d.end] for d in draws]
    np.testing.assert_array_equal(rows, case["out/draws"][:, :6])


@procedure("dynamic_mixing")
def dynamic_mixing(case, folder):
    config = case.config
    sources, responses, gains = [], [], []
    for c, choice in enumerate(config["sources"], start=1):
        sources.append(case[f"in/utt{c}"][choice["start"] : choice["start"] + choice["frames"]])
        gains.append(choice["gain_dB"])
        ears = []
        for ear in ("left", "right"):
            row = case[f"in/hrir{c}_{ear}"][choice[f"elevation_index_{ear}"]] / 32768
            ears.append(audio.resample_sinc(row, config["hrir_rate"], config["sample_rate"]))
            case.check(f"hrir{c}_{ear}", ears[-1], case[f"out/step/hrir{c}_{ear}_8k"])
        responses.append(np.stack(ears, axis=1))
    mixture, images = binaural.mix_dynamically(sources, gains, responses)
    case.check("mix", mixture, case["out/mix"])
    for c, image in enumerate(images, start=1):
        case.check(f"s{c}", image, case[f"out/s{c}"])


@procedure("speed_perturb")
def speed_perturb(case, folder):
    for speed in case.config["speeds"]:
        ours = np.stack([augment.change_speed(tf.constant(x), speed, case.config["orig_freq"]) for x in case["in/x"]])
        case.check(f"speed{speed}", ours, case[f"out/speed{speed}"], least=2e-6)


def augmented(case):
    """(mixture [samples, 2], sources [talkers, samples, 2]) of a case with recorded draws."""
    config, draws = case.config, iter(values for _, values in case.meta["draws"])
    talkers = case["in/targets"].shape[-1]
    given = augment.Augmentation(
        speeds=(95, 100, 105) if config.get("use_speedperturb", True) else (),
        shift=(config["min_shift"], config["max_shift"]) if config.get("use_rand_shift") else None,
        parity=True,
    )
    speeds = [next(draws)[0] for _ in range(talkers)] if given.speeds else None
    mixture, sources = binaural_tasnet.remix(
        [tf.constant(case["in/targets"][0, ..., c]) for c in range(talkers)],
        tf.constant(case["in/mix"][0]),
        tf.constant(case["in/noise"][0]) if "in/noise" in case else None,
        given,
        config.get("sample_rate", 8000),
        speeds and [tf.constant(speed) for speed in speeds],
        [next(draws)[0] for _ in range(talkers)] if given.shifts else None,
    )
    if config.get("use_wavedrop"):
        next(draws)  # the number of chunks
        lengths, starts = next(draws), next(draws)
        next(draws)
        mixture = augment.drop_bands(
            augment.drop_chunks(mixture, starts, lengths), augment.notches(next(draws)), parity=True
        )
    if config.get("limit_training_signal_len"):
        start, samples = next(draws)[0], config["training_signal_len"]
        mixture, sources = mixture[start : start + samples], sources[:, start : start + samples]
    return mixture, sources


@procedure("augment")
def augmentation(case, folder):
    if "in/x" in case:
        wave_dropping(case)
        return
    mixture, sources = augmented(case)
    case.check("mix_used", mixture, case["out/mix_used"][0], least=2e-6)
    case.check("targets_used", np.moveaxis(sources, 0, -1), case["out/targets_used"][0], least=2e-6)


def wave_dropping(case):
    draws = case.meta["draws"]
    for key in case.named("out"):
        if key.startswith("notch_"):
            case.check(key, augment.notch(float(key[6:])), case[f"out/{key}"], least=2e-6)
    taps = tf.constant(augment.notches(draws["drop_freq"][1][1]))
    for x, mono, stereo in zip(case["in/x"], case["out/drop_freq_mono"], case["out/drop_freq"]):
        mended = augment.drop_bands(tf.constant(x), taps)
        case.check("drop_freq_mono", mended[:, 0], mono, least=2e-6)
        case.check("drop_freq", augment.drop_bands(tf.constant(x), taps, parity=True), stereo, least=2e-6)
    dropped = iter(values for _, values in draws["drop_chunk"][1:])
    for x, theirs in zip(case["in/x"], case["out/drop_chunk"]):
        lengths, starts = next(dropped), next(dropped)
        np.testing.assert_array_equal(augment.drop_chunks(tf.constant(x), starts, lengths), theirs)
