"""Makes binaural mixtures of two or three talkers, in the open, with noise, or in rooms.

From any folder with a sub-folder for every talker, or tr/, cv/ and tt/ with those:

    python feat/binaural_mix.py --corpus_root corpus/voices/wav8k --output_folder binaural

Heads are those of --hrir, CIPIC's wav edition or SOFA files; without it they are spheres. --kind chooses 2speakers,
3speakers, noise or reverb; noise comes from --noise_folder or is made, rooms from --brir_folder or are simulated.

From WSJ0 and the published lists, as Binaural-WSJ0Mix is made:

    python feat/binaural_mix.py --wsj0_root /data --metadata_folder Binaural-WSJ0Mix/metadata --hrir cipic \
        --output_folder binaural

Both write

    binaural/2speakers/wav8k/min/{tr,cv,tt}/{mix,s1,s2}/NAME.wav     stereo, left and right
    binaural/2speakers/wav8k/min/{tr,cv,tt}/manifest.csv             what each is made of; there when all wavs are

With noise there are mix_clean, mix_single, mix_both, s1, s2 and noise, 32-bit floats. Killed at any moment, the same
command goes on where it was.
"""

import contextlib
import csv
import functools
import io
import json
import os
import shutil
import time
import zlib
from dataclasses import dataclass

from feat.base.script import run_script

import numpy as np
from absl import flags

from feat.base.files import UserError, make_writable_directory, require_free_bytes, write_text
from feat.base.parallel import parallel_map
from feat.corpora import binaural_scenes
from feat.corpora.binaural_scenes import KINDS, Scene
from feat.corpora.binaural_sets import NOISE_SIGNALS, SHORTEST, divide_talkers, read_manifest, set_folder
from feat.corpora.find import _demand, ascending, find_noise, find_wsj0
from feat.corpora.lists import SETS, source_names
from feat.corpora.mixture_tree import claim_folder, file_names, measure_level
from feat.signals import binaural, noises, rooms
from feat.signals.audio import (
    FULL_SCALE,
    read_mono,
    read_stereo,
    resample,
    to_int16,
    wav_info,
    write_float,
    write_pcm16,
)
from feat.signals.hrir import CIPIC_SETS, Head, cipic_number, find_heads, split_heads
from feat.signals.mixing import MODES, draw_sets, mix_sources
from feat.signals.rooms import Room, simulate, time_name

NOISE_FIELDS = ("same", "independent", "diffuse")
BYTES_PER_SAMPLE = {"PCM_16": 2, "FLOAT": 4}
LEFT_OUT_SHOWN = 10


@dataclass(frozen=True)
class BinauralTree:
    """A set of binaural mixtures and how it is made.

    Attributes:
      source_root: what the paths of utterances are relative to.
      output_folder: of the kind's folder.
      kind: one of KINDS.
      sample_rates: Hz of the wavs, a sub-folder each.
      modes: "min" and "max", a sub-folder each.
      noise_field: noise of both ears: "same", "independent" or "diffuse".
      parity: as the original to the last bit: in rooms the right ear hears the responses of both, samples are cut
        toward zero and wrap around. Otherwise what would clip is scaled down, the whole mixture at once.
      seed: of simulated rooms.
    """

    source_root: str
    output_folder: str
    kind: str = "2speakers"
    sample_rates: tuple[int, ...] = (8000,)
    modes: tuple[str, ...] = ("min",)
    noise_field: str = "same"
    parity: bool = False
    seed: int = 0

    @property
    def folder(self):
        return os.path.join(self.output_folder, self.kind)

    @property
    def talkers(self):
        return 3 if self.kind == "3speakers" else 2

    @property
    def signals(self):
        """Names of the wavs of a mixture, and of their folders."""
        sources = source_names(self.talkers)[:-1]
        return (*NOISE_SIGNALS, *sources, "noise") if self.kind == "noise" else ("mix", *sources)

    @property
    def subtype(self):
        return "FLOAT" if self.kind == "noise" else "PCM_16"

    @property
    def variants(self):
        return [(rate, mode) for rate in self.sample_rates for mode in self.modes]

    def set_folder(self, set_name, rate, mode):
        return set_folder(self.output_folder, self.kind, set_name, rate, mode)

    def record_path(self, set_name, name):
        return os.path.join(self.folder, "records", set_name, name + ".json")

    def source_path(self, path):
        return os.path.join(self.source_root, *path.split("/"))

    def room_path(self, room, azimuth):
        return os.path.join(self.folder, "rooms", f"{room.name}_{azimuth}.wav")


@dataclass(frozen=True)
class _Job:
    """A Scene of a set; `levels`: active level (power) of its utterances."""

    set_name: str
    scene: Scene
    levels: tuple[float, ...]


def make_binaural(tree, scenes_of_set, settings, overwrite=False, num_workers=0):
    """Makes the mixtures of the scenes, or what is still missing of them.

    Args:
      tree: BinauralTree.
      scenes_of_set: {set: [Scene]}.
      settings: {name: value}, all that the scenes depend on.
      overwrite: replace what was made in the folder with other settings.
      num_workers: processes; 0 takes one for every core.

    Returns:
      Lines that sum up what was done.

    Raises:
      UserError: a source cannot be used, the disk is too small, or the folder holds other mixtures.
    """
    started = time.monotonic()
    # Rates and modes have folders of their own and may be added; the rest decides what all files hold.
    claim_folder(
        tree.folder,
        settings | {"noise_field": tree.noise_field, "parity": tree.parity, "seed": tree.seed},
        overwrite,
    )
    known = {name: _known(tree, name, scenes) for name, scenes in scenes_of_set.items()}
    missing = {
        name: [scene for scene in scenes if scene.name not in known[name]] for name, scenes in scenes_of_set.items()
    }
    _require_rooms(missing)
    _require_disk(tree, missing, num_workers)
    for set_name, scenes in missing.items():
        for rate, mode in tree.variants:
            folder = tree.set_folder(set_name, rate, mode)
            for signal in tree.signals:
                make_writable_directory(os.path.join(folder, signal))
        make_writable_directory(os.path.dirname(tree.record_path(set_name, "")))
        if scenes:
            for name, rows in known[set_name].items():
                if not os.path.exists(tree.record_path(set_name, name)):
                    write_text(tree.record_path(set_name, name), json.dumps(rows) + "\n")
            # What the manifests knew is kept in the records; without them the set does not look whole.
            for rate, mode in tree.variants:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(os.path.join(tree.set_folder(set_name, rate, mode), "manifest.csv"))
    _simulate_rooms(tree, missing, num_workers)
    unknown = _utterances(missing, lambda scene: scene.gains is None)
    levels = dict(zip(unknown, parallel_map(functools.partial(_level, tree), unknown, num_workers, "speech levels")))
    jobs = [
        _Job(name, scene, tuple(levels.get(path, 1.0) for path in scene.paths))
        for name, scenes in missing.items()
        for scene in scenes
    ]
    parallel_map(functools.partial(_make, tree), jobs, num_workers, "mixtures")
    for set_name, scenes in scenes_of_set.items():
        for scene in missing[set_name]:
            known[set_name][scene.name] = _read_json(tree.record_path(set_name, scene.name))
        rows = [known[set_name][scene.name] for scene in scenes]
        for rate, mode in tree.variants:
            path = os.path.join(tree.set_folder(set_name, rate, mode), "manifest.csv")
            if not os.path.exists(path):
                # The last, because it says that the set is whole.
                _write_manifest(path, [row[f"{rate}_{mode}"] for row in rows])
        shutil.rmtree(os.path.dirname(tree.record_path(set_name, "")))
    with contextlib.suppress(OSError):
        os.rmdir(os.path.join(tree.folder, "records"))
    return [
        f"{tree.folder}: {sum(map(len, scenes_of_set.values()))} mixtures of {tree.talkers} talkers,"
        f" {len(jobs)} of them made now; {time.monotonic() - started:.0f} s",
        *_clipped(tree, known),
    ]


def mix_scene(tree, scene, rate, mode, levels=None):
    """One mixture, before it is rounded.

    Args:
      tree: BinauralTree.
      scene: Scene.
      levels: active level (power) of its utterances, where gains are not published.

    Returns:
      ({signal: float64 [samples, 2], full scale is 1}, {name: value} for the manifest).

    Raises:
      UserError: a file cannot be used, or is too short.
    """
    sources = [resample(_read(tree.source_path(path)), _rate(tree, path), rate) for path in scene.paths]
    if scene.gains is None:
        scaled = mix_sources(sources, levels, scene.gains_db, mode)[1]
        gains = [np.linalg.norm(y) / np.linalg.norm(x[: len(y)]) for x, y in zip(sources, scaled)]
        sources = scaled
    else:
        gains = scene.gains[rate, mode]
        sources = binaural.fix_length([x * gain for x, gain in zip(sources, gains)], mode)
    if len(sources[0]) < SHORTEST and not tree.parity:
        shortest = min(scene.paths, key=lambda path: wav_info(tree.source_path(path)).seconds)
        raise UserError(
            f"{tree.source_path(shortest)}: {len(sources[0])} samples at {rate} Hz, {SHORTEST} are needed; leave it out"
        )
    in_room = not isinstance(scene.place, Head)
    responses = [_response(tree, scene, c, rate) for c in range(tree.talkers)]
    rendered = [binaural.render(source, response, in_room, tree.parity) for source, response in zip(sources, responses)]
    images, factors = np.stack([image for image, _ in rendered]), [factor for _, factor in rendered]
    row = {"name": scene.name, "samples": 0, "place": binaural_scenes.place_name(scene.place)}
    if tree.kind == "noise":
        noise, start, noise_gain = _noise(tree, scene, rate, mode, gains, levels)
        images, noise = binaural.join_noise(images, noise, start, mode)
        row |= {
            "noise_kind": scene.noise.kind,
            "noise_source": scene.noise.path,
            "noise_begin_16k": scene.noise.draw.begin,
            "noise_end_16k": scene.noise.draw.end,
            "speech_start": start if mode == "max" else 0,
            "snr_db": scene.noise.draw.snr_db,
            "noise_gain": noise_gain,
        }
    signals = _signals(tree, images, noise if tree.kind == "noise" else None)
    peak = max(np.abs(signal).max() for signal in signals.values())
    common = 1.0
    if not tree.parity and peak > 1:
        common = binaural.PEAK / peak
        signals = {name: signal * common for name, signal in signals.items()}
    row |= {"samples": images.shape[1], "mixture_gain": common, "peak": peak * common}
    for c, (path, image) in enumerate(zip(scene.paths, images)):
        left, right = np.sum(np.square(image), axis=0)
        row |= {
            f"s{c + 1}_source": path,
            f"s{c + 1}_azimuth": scene.azimuths[c],
            f"s{c + 1}_elevation": binaural_scenes.ELEVATION_NAMES[scene.elevations[c]] if scene.elevations else "",
            f"s{c + 1}_gain": float(gains[c]),
            f"s{c + 1}_response_gain": factors[c],
            f"s{c + 1}_ild_db": float(10 * np.log10((left + 1e-12) / (right + 1e-12))),
        }
    return signals, row


# Inside -------------------------------------------------------------------------------------------


def _signals(tree, images, noise):
    sources = dict(zip(source_names(tree.talkers), images))
    speech = images.sum(axis=0)
    if noise is None:
        return {"mix": speech, **sources}
    mixed = dict(zip(NOISE_SIGNALS, (speech, noise + images[0], noise + speech)))
    return {**mixed, **sources, "noise": noise}


def _read(path):
    return read_mono(path).astype(np.float64)


def _rate(tree, path):
    return wav_info(tree.source_path(path)).sample_rate


def _level(tree, path):
    return measure_level(tree.source_path(path))


def _response(tree, scene, source, rate):
    """Response of a source of a scene, [taps, 2]."""
    azimuth = scene.azimuths[source]
    if isinstance(scene.place, Head):
        return scene.place.response(azimuth, scene.elevations[source], rate)
    if isinstance(scene.place, Room):
        path = tree.room_path(scene.place, azimuth)
    else:
        path = _recorded_response(scene.place, azimuth)
    return _room_response(path, rate)


def _recorded_response(folder, azimuth):
    return os.path.join(folder, f"CATT_{os.path.basename(folder)}_{azimuth}.wav")


def _require_rooms(scenes_of_set):
    """Raises UserError, naming the first, if responses of recorded rooms are missing."""
    scenes = [scene for scenes in scenes_of_set.values() for scene in scenes if isinstance(scene.place, str)]
    paths = sorted({_recorded_response(scene.place, azimuth) for scene in scenes for azimuth in scene.azimuths})
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        raise UserError(
            f"{missing[0]}: no such file; {len(missing)} of {len(paths)} responses are missing; check --brir_folder"
        )


@functools.lru_cache(512)
def _room_response(path, rate):
    return resample(read_stereo(path).astype(np.float64), wav_info(path).sample_rate, rate)


def _noise(tree, scene, rate, mode, gains, levels):
    """(noise at both ears [samples, 2], sample where the speech begins, factor of the noise)."""
    noise, base = scene.noise, binaural.NOISE_RATE_HZ
    samples = noise.draw.end - noise.draw.begin
    if noise.kind == "file":
        pieces = [_piece(noise.path, noise.draw.begin, samples)]
        if tree.noise_field != "same":  # another place of the recording
            total = _samples_16k(noise.path)
            pieces.append(_piece(noise.path, (noise.draw.begin + total // 2) % (total - samples + 1), samples))
    else:
        speech = [resample(_read(tree.source_path(path)), _rate(tree, path), base) for path in noise.speech]
        count = 1 if tree.noise_field == "same" else 2
        rng = [np.random.default_rng((noise.seed, ear)) for ear in range(count)]
        pieces = [noises.synthesise(noise.kind, samples, base, generator, speech) for generator in rng]
    pieces = [resample(piece, base, rate) for piece in pieces]
    both = binaural.spread(pieces[0], pieces[-1], rate, tree.noise_field)
    if noise.gain is not None:
        gain = noise.gain[rate, mode]
    else:
        # The first talker's level while active, both ears together, over the power of the noise.
        power = levels[0] * gains[0] ** 2
        gain = float(np.sqrt(power / np.mean(np.square(both)) / 10 ** (noise.draw.snr_db / 10)))
    return both * gain, noise.draw.before * rate // base, gain


def _piece(path, begin, samples):
    """float64 [samples] of a recording of noise, of its first channel, counted at 16 kHz."""
    import soundfile

    rate = wav_info(path).sample_rate
    first, last = (-(-place * rate // binaural.NOISE_RATE_HZ) for place in (begin, begin + samples))
    piece = soundfile.read(path, start=first, stop=last, dtype="float64", always_2d=True)[0][:, 0]
    piece = resample(piece, rate, binaural.NOISE_RATE_HZ)[:samples]
    return np.pad(piece, (0, samples - len(piece)))


@functools.lru_cache(4096)
def _samples_16k(path):
    info = wav_info(path)
    return -(-info.frames * binaural.NOISE_RATE_HZ // info.sample_rate)


def _make(tree, job):
    """Writes what is missing of one mixture, then its record."""
    rows = {}
    for rate, mode in tree.variants:
        signals, row = mix_scene(tree, job.scene, rate, mode, job.levels)
        clipped = 0
        for name, signal in signals.items():
            path = os.path.join(tree.set_folder(job.set_name, rate, mode), name, job.scene.name + ".wav")
            if tree.subtype == "FLOAT":
                if not os.path.exists(path):
                    write_float(path, signal, rate)
                continue
            samples, beyond = binaural.truncate16(signal * FULL_SCALE) if tree.parity else (to_int16(signal), 0)
            clipped += beyond
            if not os.path.exists(path):
                write_pcm16(path, samples, rate)
        rows[f"{rate}_{mode}"] = row | {"wrapped": clipped}
    write_text(tree.record_path(job.set_name, job.scene.name), json.dumps(rows) + "\n")


def _simulate_rooms(tree, scenes_of_set, num_workers):
    """Makes the responses of simulated rooms that scenes need and that are not there."""
    wanted = {
        (scene.place, azimuth)
        for scenes in scenes_of_set.values()
        for scene in scenes
        if isinstance(scene.place, Room)
        for azimuth in scene.azimuths
    }
    if wanted:
        make_writable_directory(os.path.join(tree.folder, "rooms"))
    jobs = sorted(
        (pair for pair in wanted if not os.path.exists(tree.room_path(*pair))),
        key=lambda pair: (pair[0].name, pair[1]),
    )
    parallel_map(functools.partial(_simulate, tree), jobs, num_workers, "rooms")


def _simulate(tree, pair):
    write_float(tree.room_path(*pair), simulate(*pair, tree.seed), rooms.RATE_HZ)


def _known(tree, set_name, scenes):
    """{name: rows by variant} of the mixtures that are there, all of their files."""
    found = {scene.name: {} for scene in scenes}
    records = os.path.dirname(tree.record_path(set_name, ""))
    for file in file_names(records):
        if file[0] != "." and file.endswith(".json") and file[:-5] in found:
            found[file[:-5]] = _read_json(os.path.join(records, file))
    for rate, mode in tree.variants:
        folder = tree.set_folder(set_name, rate, mode)
        if os.path.exists(os.path.join(folder, "manifest.csv")):
            for row in read_manifest(folder):
                if row["name"] in found:
                    found[row["name"]][f"{rate}_{mode}"] = row
        for signal in tree.signals:
            present = file_names(os.path.join(folder, signal))
            for name, rows in found.items():
                if name + ".wav" not in present:
                    rows.pop(f"{rate}_{mode}", None)
    return {name: rows for name, rows in found.items() if all(f"{r}_{m}" in rows for r, m in tree.variants)}


def _read_json(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def _write_manifest(path, rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys() if rows else ["name"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _utterances(scenes_of_set, chosen=lambda scene: True):
    """Paths of the utterances of the chosen scenes, once each."""
    scenes = (scene for some in scenes_of_set.values() for scene in some if chosen(scene))
    return list(dict.fromkeys(path for scene in scenes for path in scene.paths))


def _require_disk(tree, missing, num_workers):
    """Says how much is going to be written. Raises UserError if the disk cannot hold it."""
    paths = _utterances(missing)
    seconds = dict(zip(paths, _lengths(tree, paths, num_workers)))
    total = 0
    for scenes in missing.values():
        for scene in scenes:
            lengths = [seconds[path] for path in scene.paths]
            for rate, mode in tree.variants:
                longest = (min if mode == "min" else max)(lengths)
                if tree.kind == "noise" and mode == "max":
                    longest = (scene.noise.draw.end - scene.noise.draw.begin) / binaural.NOISE_RATE_HZ
                total += longest * rate * len(tree.signals)
    needed = int(2 * total * BYTES_PER_SAMPLE[tree.subtype])
    require_free_bytes(tree.output_folder, needed, "the mixtures")
    if needed:
        print(f"{tree.folder}: {needed / 1e6:,.0f} MB will be written", flush=True)


def _lengths(tree, paths, num_workers):
    """Seconds of utterances."""
    workers = num_workers if len(paths) > 2000 else 1
    return parallel_map(functools.partial(_seconds, tree), paths, workers, "lengths")


def _seconds(tree, path):
    return wav_info(tree.source_path(path)).seconds


def _clipped(tree, known):
    """Lines on mixtures that were scaled down, or that wrap around in parity."""
    rows = [row for rows in known.values() for by_variant in rows.values() for row in by_variant.values()]
    wrapped = [row for row in rows if int(row["wrapped"])]
    scaled = sum(float(row["mixture_gain"]) < 1 for row in rows)
    lines = []
    if wrapped:
        lines.append(
            f"{len(wrapped)} of {len(rows)} mixtures have samples beyond full scale, which wrap around as the"
            f" original's do ({sum(int(row['wrapped']) for row in wrapped)} samples); see the manifest"
        )
    if scaled:
        lines.append(f"{scaled} of {len(rows)} mixtures were scaled down, so that nothing clips; see the manifest")
    return lines


# Flags --------------------------------------------------------------------------------------------


def _drawn(values, tree):
    """({set: [Scene]}, settings) drawn from --corpus_root."""
    counts = {name: values[f"{name}_mixtures"].value for name in SETS}
    utterances = divide_talkers(tree.source_root, values.seed)
    utterances, samples_of = _long_enough(tree, utterances, values.num_workers)
    places = _places(values, tree, counts)
    lines_of_set = draw_sets(utterances, counts, tree.talkers, values.seed)
    scenes = {
        name: binaural_scenes.draw_scenes(lines, places[name], values.seed, name)
        for name, lines in lines_of_set.items()
        if lines
    }
    settings = {
        "corpus_root": os.path.abspath(tree.source_root),
        "utterances": zlib.crc32(repr(utterances).encode()),
        "mixtures": counts,
        "places": zlib.crc32(repr(places).encode()),
    }
    if tree.kind == "noise":
        snr_db = ascending(values, "snr_db", 2)
        recordings = _recordings(values)
        for name in scenes:
            scenes[name] = binaural_scenes.add_drawn_noise(
                scenes[name], samples_of, recordings[name], utterances[name], snr_db, values.seed, name
            )
        settings |= {"snr_db": snr_db, "noise": zlib.crc32(repr(recordings).encode())}
    return scenes, settings


def _published(values, tree):
    """({set: [Scene]}, settings) of the published lists."""
    if tree.kind == "reverb":
        place_of = functools.partial(_recorded_room, values.brir_folder)
        if not values.brir_folder:
            raise UserError("--brir_folder is missing; the published lists name the responses of recorded rooms")
    else:
        if not values.hrir:
            raise UserError("--hrir is missing; the published lists name the listeners of CIPIC")
        heads = find_heads(values.hrir, values.seed)
        place_of = functools.partial(_listener, values.hrir, heads)
    read = {
        name: binaural_scenes.read_scenes(
            values.metadata_folder, tree.kind, name, tree.sample_rates, tree.modes, place_of
        )
        for name in SETS  # of noise all sets are needed, as one stream of random numbers goes through them
        if tree.kind == "noise" or name in values.sets
    }
    scenes = {name: found[0] for name, found in read.items()}
    if tree.kind == "noise":
        recordings = _recordings(values)
        if not all(recordings.values()):
            raise UserError("--noise_folder is missing; the published lists are of DEMAND")
        paths = _utterances(scenes)
        lengths = _lengths(tree, paths, values.num_workers)
        samples_of = {
            path: int(np.ceil(round(seconds * binaural.NOISE_RATE_HZ, 6))) for path, seconds in zip(paths, lengths)
        }
        scenes = binaural_scenes.add_noise_in_parity(scenes, samples_of, recordings)
        for name, (_, gains, starts) in read.items():
            scenes[name] = binaural_scenes.with_noise_gains(scenes[name], gains, starts, values.metadata_folder)
    # The lists decide everything, whatever sets, rates and modes are made of them.
    return scenes, {"metadata": _fingerprint(values)}


def _fingerprint(values):
    """Checksum of the published lists."""
    folder = values.metadata_folder
    names = sorted(name for name in file_names(folder) if name.endswith(".csv"))
    return zlib.crc32(repr([(name, os.path.getsize(os.path.join(folder, name))) for name in names]).encode())


def _listener(path, heads, name):
    """The Head of a subject of the lists."""
    if name in heads:
        return heads[name]
    number = cipic_number(name)
    for key in heads:
        if number is not None and cipic_number(key) == number:
            return heads[key]
    raise UserError(f"{path}: no folder of the listener {name}; take CIPIC's wav edition whole")


def _recorded_room(folder, name):
    path = os.path.join(folder, name)
    if not os.path.isdir(path):
        raise UserError(f"{path}: no such folder; check --brir_folder, which holds 0_1s/CATT_0_1s_-90.wav and so on")
    return path


def _places(values, tree, counts):
    """{set: [Head, Room or folder of a recorded room]}."""
    if tree.kind == "reverb" and values.brir_folder:
        return {
            name: [_recorded_room(values.brir_folder, time_name(t)) for t in rooms.REVERB_TIMES[name]] for name in SETS
        }
    heads = find_heads(values.hrir, values.seed)
    of_set = split_heads(heads, values.seed)
    if len(heads) < 3:
        print(f"{values.hrir}: {len(heads)} listeners, who are in all sets; three or more would be kept apart")
    empty = [name for name in SETS if counts[name] and not of_set[name]]
    if empty:
        raise UserError(
            f"{values.hrir}: no listener of CIPIC's set {empty[0]}, such as subject{CIPIC_SETS[empty[0]][0]}; add some,"
            f" or give --{empty[0]}_mixtures 0"
        )
    if tree.kind != "reverb":
        return of_set
    return {name: rooms.draw_rooms(name, some, values.seed) if some else [] for name, some in of_set.items()}


def _recordings(values):
    """{set: {path: samples at 16 kHz}} of --noise_folder; nothing where it is not given."""
    folder = values.noise_folder
    if not folder:
        return {name: {} for name in SETS}
    if values.metadata_folder:
        absent = [path for paths in _demand(folder).values() for path in paths if not os.path.exists(path)]
        if absent:
            raise UserError(f"{absent[0]}: no such file; the published lists need DEMAND's rooms at 16 kHz")
    found = find_noise(folder, values.seed)
    return {name: {path: _samples_16k(path) for path in paths} for name, paths in found.items()}


def _long_enough(tree, utterances, num_workers):
    """(utterances without what is too short or unusable, which is said; {path: samples at 16 kHz})."""
    paths = [path for talkers in utterances.values() for some in talkers.values() for path in some]
    checked = parallel_map(
        functools.partial(_checked_seconds, tree), paths, num_workers if len(paths) > 2000 else 1, "check utterances"
    )
    reasons, samples_of = [], {}
    for path, seconds in zip(paths, checked):
        if isinstance(seconds, str):
            reasons.append(seconds)
        elif seconds * min(tree.sample_rates) < SHORTEST:
            reasons.append(
                f"{tree.source_path(path)}: {int(seconds * min(tree.sample_rates))} samples at"
                f" {min(tree.sample_rates)} Hz, {SHORTEST} are needed"
            )
        else:
            samples_of[path] = int(np.ceil(round(seconds * binaural.NOISE_RATE_HZ, 6)))
    for reason in reasons[:LEFT_OUT_SHOWN]:
        print(f"left out: {reason}")
    if len(reasons) > LEFT_OUT_SHOWN:
        print(f"left out: {len(reasons) - LEFT_OUT_SHOWN} more")
    kept = {
        name: {talker: [path for path in some if path in samples_of] for talker, some in talkers.items()}
        for name, talkers in utterances.items()
    }
    kept = {name: {talker: some for talker, some in talkers.items() if some} for name, talkers in kept.items()}
    return kept, samples_of


def _checked_seconds(tree, path):
    """Seconds of an utterance, or why it cannot be used."""
    try:
        info = wav_info(tree.source_path(path))
    except UserError as error:
        return str(error)
    return info.seconds if info.channels == 1 else f"{tree.source_path(path)}: {info.channels} channels, 1 is needed"


def _choices(values, name, allowed):
    chosen = list(dict.fromkeys(values[name].value))
    if not chosen or set(chosen) - set(allowed):
        raise UserError(f"--{name} {','.join(chosen)}: give one or more of {','.join(allowed)}")
    return chosen


def define_flags():
    flags.DEFINE_string("corpus_root", None, "folder of wav or flac files for every talker, or tr/, cv/, tt/ of those")
    flags.DEFINE_string("wsj0_root", None, "with --metadata_folder: folder that holds wsj0/, decoded to wav")
    flags.DEFINE_string("metadata_folder", None, "folder of the published lists of Binaural-WSJ0Mix")
    flags.DEFINE_string("output_folder", None, "folder to write to")
    flags.DEFINE_enum("kind", "2speakers", KINDS, "what is mixed; noise and reverb are of two talkers")
    flags.DEFINE_string("hrir", None, "CIPIC's wav edition, a SOFA file or a folder of them; default: spherical heads")
    flags.DEFINE_string("brir_folder", None, "responses of rooms, TIME/CATT_TIME_AZIMUTH.wav; default: simulated")
    flags.DEFINE_string("noise_folder", None, "DEMAND, or any recordings of noise; default: made")
    flags.DEFINE_enum("noise_field", "same", NOISE_FIELDS, "noise of the two ears")
    flags.DEFINE_list("snr_db", ["-2.5", "15"], "dB of the first talker over the noise, lowest and highest")
    flags.DEFINE_list("sample_rates", ["8000"], "Hz of the wavs")
    flags.DEFINE_list("modes", ["min"], "length rules: min cuts to the shortest, max pads to the longest")
    flags.DEFINE_list("sets", list(SETS), "sets to make")
    flags.DEFINE_integer("seed", 0, "draws the mixtures")
    flags.DEFINE_bool("parity", False, "exactly as the original, with the mixed-up ears of its rooms and overflows")
    flags.DEFINE_bool("overwrite", False, "replace what was made in the folder with other settings")
    flags.DEFINE_integer("num_workers", 0, "processes; 0: one for every core", lower_bound=0)
    for set_name, mixtures in (("tr", 20000), ("cv", 5000), ("tt", 3000)):
        flags.DEFINE_integer(f"{set_name}_mixtures", mixtures, f"mixtures of the set {set_name}", lower_bound=0)


def main(_):
    values = flags.FLAGS
    sets = _choices(values, "sets", SETS)
    modes = _choices(values, "modes", MODES)
    rates = [int(rate) if rate.isdecimal() else 0 for rate in values.sample_rates]
    if not rates or min(rates) < 4000:
        raise UserError(f"--sample_rates {','.join(values.sample_rates)}: give one or more rates in Hz")
    if not values.output_folder:
        raise UserError("--output_folder is missing; see the examples in --help")
    if bool(values.metadata_folder) != bool(values.wsj0_root) or bool(values.corpus_root) == bool(values.wsj0_root):
        raise UserError("give --corpus_root, or both --wsj0_root and --metadata_folder; see the examples in --help")
    root = values.corpus_root or find_wsj0(values.wsj0_root)
    tree = BinauralTree(
        root, values.output_folder, values.kind, tuple(rates), tuple(modes), values.noise_field, values.parity,
        values.seed,
    )  # fmt: skip
    scenes, settings = (_drawn if values.corpus_root else _published)(values, tree)
    chosen = {name: scenes[name] for name in sets if name in scenes}
    print("\n".join(make_binaural(tree, chosen, settings, values.overwrite, values.num_workers)))


if __name__ == "__main__":
    define_flags()
    run_script(main)
