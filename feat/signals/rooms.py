"""Binaural responses of simulated rooms: image sources of pyroomacoustics, each heard through a listener's responses.

The images are complete up to some time; what comes later is noise that decays, with the coherence of a diffuse field.
"""

import random
from dataclasses import dataclass

import numpy as np

from feat.base.files import UserError
from feat.signals.binaural import spread
from feat.signals.hrir import AZIMUTHS, ELEVATIONS, SOUND_M_PER_S, Head

# Seconds; no set has one of another.
REVERB_TIMES = {"tr": (0.1, 0.2, 0.4, 0.7, 0.8), "cv": (0.5,), "tt": (0.3, 0.6, 0.9)}
AZIMUTHS_IN_ROOMS = tuple(range(-90, 95, 5))
ROOMS_PER_TIME = {"tr": 20, "cv": 10, "tt": 10}
RATE_HZ = 16000  # of the responses
HIGHEST_ORDER = 20
EAR_HEIGHT_M = 1.5
MARGIN_M = 0.3  # from walls


@dataclass(frozen=True)
class Room:
    """A shoebox room with a listener in it.

    Attributes:
      name: starts with the reverberation time, as 0_3s.
      reverb_s: time of a decay by 60 dB.
      size_m: of the three axes.
      position_m: of the middle of the head.
      facing_deg: where the nose points, from the first axis to the second.
      distance_m: of every talker.
      head: the listener.
    """

    name: str
    reverb_s: float
    size_m: tuple[float, float, float]
    position_m: tuple[float, float, float]
    facing_deg: float
    distance_m: float
    head: Head


def time_name(reverb_s):
    """0_3s, as the folders of the Surrey responses are called."""
    return f"{reverb_s:.1f}s".replace(".", "_")


def draw_room(name, reverb_s, head, seed):
    """A Room that depends on name and seed alone."""
    rng = random.Random(f"{seed} {name}")
    distance = rng.uniform(1.0, 1.8)
    size = rng.uniform(4.6, 7), rng.uniform(4.6, 6), rng.uniform(2.4, 3.2)
    around = distance + MARGIN_M
    position = rng.uniform(around, size[0] - around), rng.uniform(around, size[1] - around), EAR_HEIGHT_M
    return Room(name, reverb_s, size, position, rng.uniform(0, 360), distance, head)


def draw_rooms(set_name, heads, seed, per_time=None):
    """[Room] of a set, of every reverberation time so many; `per_time` None: ROOMS_PER_TIME. Fewer are the first."""
    rng = random.Random(f"{seed} {set_name} rooms")
    drawn = []
    for reverb_s in REVERB_TIMES[set_name]:
        numbers = range(ROOMS_PER_TIME[set_name])
        names = [f"{time_name(reverb_s)}-{set_name}{number:02d}" for number in numbers]
        drawn += [draw_room(name, reverb_s, rng.choice(heads), seed) for name in names][:per_time]
    return drawn


def simulate(room, azimuth, seed=0):
    """Response from a talker at the height of the ears to both ears.

    Args:
      azimuth: degrees, -90 to 90, positive to the right.

    Returns:
      float64 [taps, 2] at 16 kHz, the direct sound early in it.

    Raises:
      UserError: pyroomacoustics is not installed.
    """
    vectors, gains = _images(room, azimuth)
    distances = np.linalg.norm(vectors, axis=1)
    complete_s = HIGHEST_ORDER * min(room.size_m) / SOUND_M_PER_S  # images are, up to here
    first = room.distance_m / SOUND_M_PER_S
    length = int((first + max(0.05, room.reverb_s)) * RATE_HZ)
    early = int(min(complete_s * RATE_HZ, length))
    lead = int(first * RATE_HZ) - 20

    # Images by the nearest of the measured directions.
    front, left, up = (vectors / distances[:, None]).T
    azimuths = np.abs(np.degrees(np.arcsin(np.clip(-left, -1, 1)))[:, None] - np.array(AZIMUTHS)).argmin(axis=1)
    elevation = (np.degrees(np.arctan2(up, front)) + 90) % 360 - 90
    elevations = np.clip(np.round((elevation - ELEVATIONS[0]) / 5.625), 0, len(ELEVATIONS) - 1).astype(int)
    bank = np.stack([room.head.responses(a, RATE_HZ) for a in AZIMUTHS])
    taps = bank.shape[2]
    begin = np.round(distances / SOUND_M_PER_S * RATE_HZ).astype(int)
    heard = begin < early
    places = (begin[heard, None] + np.arange(taps)).ravel()
    response = np.zeros((length + taps, 2))
    for ear in range(2):
        parts = bank[azimuths[heard], elevations[heard], :, ear] * gains[heard, None]
        response[:, ear] = np.bincount(places, parts.ravel(), minlength=length + taps)[: length + taps]
    if early < length:
        response[early:] = 0
        _decay_on(response, early, length, room, (seed, azimuth + 90))
    return response[lead:length]


def _decay_on(response, early, length, room, seed):
    """Continues a response [samples, 2] from sample `early` on, at the level that it has there."""
    window = int(0.04 * RATE_HZ)
    rng = np.random.default_rng((*seed, *room.name.encode()))
    noise = spread(*rng.standard_normal((2, length - early)), RATE_HZ, "diffuse")
    # Decay in the middle of the window, where the level is measured, is 1.
    time = (np.arange(length - early) + window / 2) / RATE_HZ
    noise *= 10 ** (-3 * time / room.reverb_s)[:, None]
    response[early:length] = noise * np.sqrt(np.mean(response[early - window : early] ** 2))


def _images(room, azimuth):
    """(images of a talker relative to the head [images, 3] front, left, up in metres, their amplitudes [images])."""
    try:
        import pyroomacoustics
    except ImportError as error:
        raise UserError("pyroomacoustics is not installed; get it with: pip install -e .[room]") from error
    # The absorption is put in below; here it must only let every image be.
    shoebox = pyroomacoustics.ShoeBox(
        room.size_m, fs=RATE_HZ, materials=pyroomacoustics.Material(0.5), max_order=HIGHEST_ORDER
    )
    heading = np.radians(room.facing_deg - azimuth)
    talker = np.array(room.position_m) + room.distance_m * np.array([np.cos(heading), np.sin(heading), 0])
    shoebox.add_source(talker)
    shoebox.add_microphone(np.array(room.position_m))
    shoebox.image_source_model()
    source = shoebox.sources[0]
    vectors = source.images.T - room.position_m
    facing = np.radians(room.facing_deg)
    axes = np.array([[np.cos(facing), np.sin(facing), 0], [-np.sin(facing), np.cos(facing), 0], [0, 0, 1]])
    distances = np.linalg.norm(vectors, axis=1)
    reflected = _reflected(room, distances, source.orders)
    return vectors @ axes.T, np.sqrt(reflected) ** source.orders / distances


def _reflected(room, distances, orders):
    """Share of the energy that walls reflect, such that the images decay as they should.

    Formulas like Sabine's are for diffuse fields; images in a box decay more slowly, so that it is searched for.
    """
    times = distances / SOUND_M_PER_S
    begin = times.min() + 0.01
    end = min(HIGHEST_ORDER * min(room.size_m) / SOUND_M_PER_S, begin + 0.45 * room.reverb_s)
    place = np.floor((times - begin) / (end - begin) * 10).astype(int)
    heard = (place >= 0) & (place < 10)
    place, orders, energy = place[heard], orders[heard], distances[heard] ** -2.0
    lowest, highest = 0.0, 1.0
    for _ in range(20):
        share = (lowest + highest) / 2
        levels = 10 * np.log10(np.bincount(place, energy * share**orders, minlength=10) + 1e-30)
        slope = np.polyfit(np.arange(10) * (end - begin) / 10, levels, 1)[0]  # dB/s
        lowest, highest = (share, highest) if slope < -60 / room.reverb_s else (lowest, share)
    return share
