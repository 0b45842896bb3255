"""Procedures of the golden cases on the data of Binaural TasNet, see test_golden.py."""

import numpy as np
import tensorflow as tf

from feat import audio, augment, binaural, binaural_dataset

PROCEDURES = {}


def procedure(kind):
    def register(function):
        PROCEDURES["binaural", kind] = function
        return function

    return register


@procedure("data")
def data(case, folder):
    config = case.config
    count = len(config["azimuth"])
    found = {}
    for rate in (8000, 16000):
        tag = f"{rate // 1000}k"
        sources, responses = [], []
        for c in range(1, count + 1):
            gain = config[f"scaling_{tag}"][c - 1]
            source = audio.resample(case[f"in/utt{c}"].astype(float), 16000, rate) * gain
            found[f"step/scaled_{tag}_{c}"] = source
            sources.append(source * config.get("scaling_wham_speech", 32768) / 32768)
            if f"in/brir{c}" in case:
                responses.append(audio.resample(case[f"in/brir{c}"] / 32768, config["brir_rate"], rate))
                continue
            ears = [
                audio.resample(case[f"in/hrir{c}_{ear}"].astype(float), 44100, rate) for ear in ("left", "right")
            ]
            found |= {f"step/hrir{c}_{ear}_{tag}": x for ear, x in zip(("left", "right"), ears)}
            responses.append(np.stack(ears, axis=1))
        for mode in ("min", "max"):
            images = np.stack([
                binaural.render(source, response, "in/brir1" in case, parity=True)[0]
                for source, response in zip(binaural.fix_length(sources, mode), responses)
            ])
            found |= {f"step/binaural_{tag}_{mode}_{c + 1}": x for c, x in enumerate(images)}
            signals = {"mix": images.sum(axis=0)}
            if "in/noise" in case:
                noise = audio.resample(case["in/noise"].astype(float), 16000, rate) * config["scaling_wham_noise"]
                start = config["speech_start_sample_16k"] // (16000 // rate)
                images, noise = binaural.join_noise(images, np.stack([noise, noise], axis=1), start, mode)
                clean = images.sum(axis=0)
                signals = {"mix_clean": clean, "mix_single": noise + images[0], "mix_both": noise + clean}
                signals["noise"] = noise
            signals |= {f"s{c + 1}": x for c, x in enumerate(images)}
            for kind, signal in signals.items():
                written = signal.astype(np.float32) if "in/noise" in case else binaural.truncate16(signal)[0]
                found[f"wav{tag}/{mode}/{kind}"] = written
    wanted = case.named("out")
    assert wanted.keys() <= found.keys()
    for key, theirs in wanted.items():
        if theirs.dtype == np.int16:
            np.testing.assert_array_equal(found[key], theirs, err_msg=key)
        else:
            case.check(key, found[key], theirs, least=1e-9 if theirs.dtype == np.float64 else 1e-6)


@procedure("noise_sampler")
def noise_sampler(case, folder):
    config = case.config
    rng = np.random.RandomState(config["seed"])
    draws = [binaural.draw_noise(n, config["file_lengths"], rng) for n in config["utterance_lengths"]]
    rows = [[d.before, d.after, d.snr_db, d.file, d.begin, d.end] for d in draws]
    np.testing.assert_array_equal(rows, case["out/draws"][:, :6])


@procedure("save_audio")
def save_audio(case, folder):
    signals = {"mix": case["in/mix"][0]}
    for c in range(case["in/targets"].shape[-1]):
        signals[f"source{c + 1}"] = case["in/targets"][0, ..., c]
        signals[f"source{c + 1}hat"] = case["in/estimates"][0, ..., c]
    found = {f"item7_{name}.wav": binaural.save16(x) for name, x in signals.items()}
    assert case.named("out").keys() == found.keys() == set(case.config["files"])
    for name, theirs in case.named("out").items():
        np.testing.assert_array_equal(found[name], theirs, err_msg=name)


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
    config, draws = case.config, [values[0] for _, values in case.meta["draws"]]
    talkers = case["in/targets"].shape[-1]
    shift = (config["min_shift"], config["max_shift"]) if config.get("use_rand_shift") else None
    augmentation = augment.Augmentation(shift=shift, parity=True)
    noise = tf.constant(case["in/noise"][0]) if "in/noise" in case else None
    mixture, sources = binaural_dataset.remix(
        [tf.constant(case["in/targets"][0, ..., c]) for c in range(talkers)],
        tf.constant(case["in/mix"][0]),
        noise,
        augmentation,
        8000,
        [tf.constant(speed) for speed in draws[:talkers]],
        draws[talkers : 2 * talkers],
    )
    if config.get("limit_training_signal_len"):
        start, samples = draws[-1], config["training_signal_len"]
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
    dropped = iter(np.array(values, np.int32) for _, values in draws["drop_chunk"][1:])
    for x, theirs in zip(case["in/x"], case["out/drop_chunk"]):
        lengths, starts = next(dropped), next(dropped)
        np.testing.assert_array_equal(augment.drop_chunks(tf.constant(x), starts, lengths), theirs)
