"""What binaural mixtures are made of: drawn from any corpus, or read from the lists of Binaural-WSJ0Mix."""

import csv
import os
import random
import re
from dataclasses import dataclass, replace

import numpy as np

from feat.base.files import UserError
from feat.corpora.lists import SETS
from feat.signals import noises
from feat.signals.binaural import NOISE_MARGIN, NOISE_RATE_HZ, NoiseDraw, draw_noise
from feat.signals.hrir import AZIMUTHS, ELEVATION_NAMES, Head
from feat.signals.rooms import AZIMUTHS_IN_ROOMS, Room

KINDS = ("2speakers", "3speakers", "noise", "reverb")
# The rooms of DEMAND for each set.
DEMAND = {
    "tr": ("DWASHING", "DKITCHEN", "NFIELD", "NPARK", "OOFFICE", "OMEETING"),
    "cv": ("DLIVING", "NRIVER", "OHALLWAY", "PCAFETER", "SPSQUARE", "TBUS"),
    "tt": ("PSTATION", "PRESTO", "STRAFFIC", "SCAFE", "TMETRO", "TCAR"),
}
DEMAND_CHANNEL = "ch01.wav"
PARITY_NOISE_SEED = 28
ATTEMPTS = 1000


@dataclass(frozen=True)
class Noise:
    """Noise of a mixture.

    Attributes:
      kind: "file" or one of feat.signals.noises.KINDS.
      draw: NoiseDraw; of made noise without a place in a file.
      path: of the recording.
      seed: of made noise.
      speech: for babble, utterances relative to the corpus.
      gain: published gain of the noise {(rate, mode): factor}; None: by draw.snr_db.
    """

    kind: str
    draw: NoiseDraw
    path: str = ""
    seed: int = 0
    speech: tuple[str, ...] = ()
    gain: dict | None = None


@dataclass(frozen=True)
class Scene:
    """One mixture.

    Attributes:
      name: of its files, without extension.
      paths: utterances of the talkers, relative to the corpus, with slashes.
      place: whose responses: a Head, a Room, or a folder of recorded room responses.
      azimuths: degrees.
      elevations: numbers of feat.signals.hrir.ELEVATIONS; none in rooms.
      gains_db: levels of the talkers in dB, to be brought about; None where gains are published.
      gains: published factors of the talkers, {(rate, mode): (factor, ...)}.
      noise: Noise or None.
    """

    name: str
    paths: tuple[str, ...]
    place: Head | Room | str
    azimuths: tuple[int, ...]
    elevations: tuple[int, ...] = ()
    gains_db: tuple[float, ...] | None = None
    gains: dict | None = None
    noise: Noise | None = None


def _name(place, paths, azimuths, elevations):
    parts = [place]
    for i, path in enumerate(paths):
        parts += [os.path.splitext(path.rsplit("/", 1)[-1])[0], str(azimuths[i])]
        parts += [str(ELEVATION_NAMES[elevations[i]])] if elevations else []
    return "_".join(parts)


# Drawn --------------------------------------------------------------------------------------------


def draw_scenes(lines, places, seed, set_name):
    """Scenes of [MixtureLine]; a scene depends on the seed, the set and its number alone.

    Talkers of a mixture have azimuths of their own, and elevations of their own too.

    Args:
      places: [Head], [Room] or folders of recorded rooms.

    Returns:
      [Scene].

    Raises:
      UserError: a listener has too few directions.
    """
    scenes, names = [], set()
    for number, line in enumerate(lines):
        rng = random.Random(f"{seed} {set_name} {number} place")
        for attempt in range(ATTEMPTS):
            place = rng.choice(places)
            azimuths, elevations = _draw_directions(place, len(line.paths), rng)
            name = _name(place_name(place), line.paths, azimuths, elevations)
            if name not in names:
                break
        else:
            raise UserError(f"set {set_name}: no {len(lines)} different mixtures can be drawn; ask for fewer")
        names.add(name)
        gains_db = tuple(float(gain) for gain in line.gains_db)
        scenes.append(Scene(name, line.paths, place, azimuths, elevations, gains_db))
    return scenes


def place_name(place):
    return os.path.basename(place) if isinstance(place, str) else place.name


def _draw_directions(place, talkers, rng):
    """(azimuths, numbers of elevations), distinct each; rooms have no elevations."""
    if not isinstance(place, Head):
        return tuple(rng.sample(AZIMUTHS_IN_ROOMS, talkers)), ()
    have = place.available()
    for _ in range(ATTEMPTS):
        rows = rng.sample([int(row) for row in np.flatnonzero(have.any(axis=1))], talkers)
        elevations = tuple(rng.choice(np.flatnonzero(have[row]).tolist()) for row in rows)
        if len(set(elevations)) == talkers or have.sum(axis=1).max() < talkers:
            return tuple(AZIMUTHS[row] for row in rows), elevations
    raise UserError(f"{place.path}: too few directions for {talkers} talkers; take a denser set of responses")


def add_drawn_noise(scenes, samples_of, recordings, utterances, snr_db, seed, set_name):
    """The scenes with noise, made or recorded; a scene's depends on the seed, the set and its number alone.

    Args:
      samples_of: {utterance: samples at 16 kHz}.
      recordings: {path: samples at 16 kHz}; none: noise is made.
      utterances: {talker: [path]} of the set, for babble.
      snr_db: (lowest, highest).

    Raises:
      UserError: the recordings are shorter than what is needed of them.
    """
    noisy = []
    for number, scene in enumerate(scenes):
        rng = random.Random(f"{seed} {set_name} {number} noise")
        before, after = rng.randrange(NOISE_MARGIN), rng.randrange(NOISE_MARGIN)
        total = before + after + max(samples_of[path] for path in scene.paths)
        ratio = rng.uniform(*snr_db)
        if not recordings:
            kind = rng.choice(noises.KINDS)
            talkers = rng.choices(sorted(utterances), k=noises.BABBLERS)
            speech = tuple(rng.choice(utterances[talker]) for talker in talkers) if kind == "babble" else ()
            draw = NoiseDraw(before, after, ratio, 0, 0, total)
            noisy.append(replace(scene, noise=Noise(kind, draw, seed=rng.randrange(2**31), speech=speech)))
            continue
        long = {path: samples for path, samples in recordings.items() if samples > total}
        if not long:
            raise UserError(
                f"{max(recordings, key=recordings.get)}: {max(recordings.values()) / NOISE_RATE_HZ:.1f} s and none"
                f" is longer, {total / NOISE_RATE_HZ:.1f} s are needed; take longer recordings of noise"
            )
        (path,) = rng.choices(list(long), list(long.values()))
        begin = rng.randrange(long[path] - total)
        draw = NoiseDraw(before, after, ratio, list(recordings).index(path), begin, begin + total)
        noisy.append(replace(scene, noise=Noise("file", draw, path)))
    return noisy


# Published ----------------------------------------------------------------------------------------


def read_scenes(metadata_folder, kind, set_name, sample_rates, modes, place_of):
    """Scenes of the lists that come with the scripts of Binaural-WSJ0Mix (huangzj421).

    Args:
      metadata_folder: with mix_2_spk_filenames_tr.csv, scaling_tr.npz, hrtf_meta_tr.csv and so on.
      kind: one of KINDS.
      place_of: name of a listener, or of a reverberation time as 0_3s -> place, see Scene.

    Returns:
      ([Scene], without noise; factors of the noise {(rate, mode): [scenes]}, starts of the speech [scenes], both
      None without noise).

    Raises:
      UserError: a file is missing, or files do not go together.
    """
    talkers = 3 if kind == "3speakers" else 2
    more = "3" if talkers == 3 else ""
    list_path = os.path.join(metadata_folder, f"mix_{talkers}_spk_filenames_{set_name}.csv")
    rows = _read_csv(list_path, ["output_filename", *[f"s{c}_path" for c in range(1, talkers + 1)]])
    name = f"hrtf_{'reverb_' if kind == 'reverb' else ''}meta_{set_name}{more}.csv"
    columns = [f"azimuth{c}" for c in range(1, talkers + 1)]
    columns += ["reverb_time"] if kind == "reverb" else [f"elevation_index{c}" for c in range(1, talkers + 1)]
    directions_path = os.path.join(metadata_folder, name)
    directions = {_stem(row["utterance_id"]): row for row in _read_csv(directions_path, ["utterance_id", *columns])}
    scaling_path = os.path.join(metadata_folder, f"scaling_{set_name}{more}.npz")
    scaling, noise_gains, starts = _read_scaling(scaling_path, kind, len(rows), sample_rates, modes)
    scenes = []
    for i, row in enumerate(rows):
        direction = directions.get(_stem(row["output_filename"]))
        if direction is None:
            missing = row["output_filename"]
            raise UserError(f"{directions_path}: no line for {missing}; take both files from one edition")
        numbers = range(1, talkers + 1)
        azimuths = tuple(int(float(direction[f"azimuth{c}"])) for c in numbers)
        paths = tuple(row[f"s{c}_path"] for c in numbers)
        if kind == "reverb":
            text = direction["reverb_time"]
            place = text if re.fullmatch(r"\d_\ds", text) else f"{float(text):.1f}s".replace(".", "_")
            elevations = ()
        else:
            place = direction["subject"]
            elevations = tuple(int(float(direction[f"elevation_index{c}"])) for c in numbers)
        scenes.append(
            Scene(
                _name(place, paths, azimuths, elevations),
                paths,
                place_of(place),
                azimuths,
                elevations,
                gains={key: tuple(map(float, values[i])) for key, values in scaling.items()},
            )
        )
    return scenes, noise_gains, starts


def add_noise_in_parity(scenes_of_set, samples_of, recordings_of_set):
    """Scenes with noise drawn as the original does, one stream through all sets; gains are still missing.

    Args:
      scenes_of_set: {set: [Scene]} of all sets.
      samples_of: {utterance: samples at 16 kHz}.
      recordings_of_set: {set: {path: samples at 16 kHz}}.
    """
    rng = np.random.RandomState(PARITY_NOISE_SEED)
    noisy = {}
    for set_name in SETS:
        paths, lengths = list(recordings_of_set[set_name]), list(recordings_of_set[set_name].values())
        noisy[set_name] = []
        for scene in scenes_of_set[set_name]:
            try:
                draw = draw_noise(max(samples_of[path] for path in scene.paths), lengths, rng)
            except ValueError as error:
                raise UserError(f"noise for {scene.name}: {error}; take DEMAND's recordings as they are") from error
            noisy[set_name].append(replace(scene, noise=Noise("file", draw, paths[draw.file])))
    return noisy


def with_noise_gains(scenes, gains, starts, metadata_folder):
    """Scenes with the published gains of the noise. Raises UserError if the drawn noise is not the published."""
    for scene, start in zip(scenes, starts, strict=True):
        if scene.noise.draw.before != start:
            raise UserError(
                f"{metadata_folder}: speech of {scene.name} starts at {start} in the noise, but at"
                f" {scene.noise.draw.before} as the noise is drawn; the lists are not the published ones"
            )
    return [
        replace(scene, noise=replace(scene.noise, gain={key: float(values[i]) for key, values in gains.items()}))
        for i, scene in enumerate(scenes)
    ]


def _read_scaling(path, kind, count, sample_rates, modes):
    """(gains of the talkers {(rate, mode): [n, talkers]}, of the noise {(rate, mode): [n]}, starts [n])."""
    gains, noise_gains, starts = {}, {}, None
    try:
        with np.load(path) as stored:
            for rate in sample_rates:
                for mode in modes:
                    tag = f"{rate // 1000}k_{mode}"
                    gains[rate, mode] = stored[f"scaling_wsjmix_{tag}"]
                    if kind == "noise":
                        gains[rate, mode] = gains[rate, mode] * stored[f"scaling_wham_speech_{tag}"][:, None]
                        noise_gains[rate, mode] = stored[f"scaling_wham_noise_{tag}"]
            if kind == "noise":
                starts = stored["speech_start_sample_16k"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not the table of gains of Binaural-WSJ0Mix ({error}); check --metadata") from error
    short = [len(values) for values in gains.values() if len(values) < count]
    if short:
        raise UserError(f"{path}: {short[0]} gains for a list of {count}; take both files from one edition")
    return gains, noise_gains, None if starts is None else starts[:count]


def _read_csv(path, columns):
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"{path}: no such file; check --metadata") from error
    absent = [name for name in columns if not rows or name not in rows[0]]
    if absent:
        raise UserError(f"{path}: no column {absent[0]}; check --metadata")
    return rows


def _stem(name):
    return name.removesuffix(".wav")
