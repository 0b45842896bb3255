"""Head-related impulse responses: the CIPIC wav edition, SOFA files, and spherical heads computed here.

Directions are those of CIPIC, 25 azimuths times 50 elevations in interaural-polar coordinates: the azimuth is the
angle out of the median plane (90 is right), the elevation runs around the axis of the ears (0 front, 90 above,
180 behind). Everything a response is convolved with has ears in the order left, right.
"""

import functools
import os
import random
import re
from dataclasses import dataclass

import numpy as np

from feat.base.files import UserError
from feat.corpora.lists import SETS
from feat.signals.audio import resample, resample_sinc, wav_info

AZIMUTHS = (-80, -65, -55, *range(-45, 50, 5), 55, 65, 80)
ELEVATIONS = -45 + 5.625 * np.arange(50)  # degrees
ELEVATION_NAMES = tuple(int(np.floor(abs(e) + 0.5) * np.sign(e)) for e in ELEVATIONS)  # as file names have them
EARS = ("left", "right")
EAR_FILES = tuple(f"az{ear}.wav" for ear in EARS)  # ends of the names of CIPIC's wavs
CIPIC_RATE_HZ = 44100
SPHERE_TAPS = 200
SPHERES = 45  # as many listeners as CIPIC has
SPHERE_RADIUS_M = (0.0875, 0.004)  # mean and standard deviation
EAR_AZIMUTH_DEG = 100  # of the ears of a sphere, from the nose
SOUND_M_PER_S = 343.0
FARTHEST_DEG, FARTHEST_AZIMUTH_DEG = 7.5, 2.6  # of a measured position from the direction that it stands for
LATERAL_DEG = 15  # from this azimuth on the near ear is louder, of a sphere by 3.7 dB and more
SWAPPED_DB = 2  # of the far ear over the near one; ears whose gains differ a little are let pass
# The listeners that Binaural-WSJ0Mix takes for each set.
CIPIC_SETS = {
    "tr": "08 09 10 11 119 127 131 135 137 15 152 153 154 156 162 163 19 20 27 28 44 48 50 58 59 60 65".split(),
    "cv": "03 12 126 147 155 158 165 17 40".split(),
    "tt": "124 133 134 148 18 21 33 51 61".split(),
}


@dataclass(frozen=True)
class Head:
    """A listener.

    Attributes:
      name: of the listener.
      kind: "cipic", "sofa" or "sphere".
      path: folder of a CIPIC listener, or a SOFA file.
      radius_m: of a sphere.
    """

    name: str
    kind: str
    path: str = ""
    radius_m: float = 0.0

    def available(self):
        """bool [25, 50]: the directions that this listener has responses for."""
        return _available(self)

    def responses(self, azimuth, sample_rate, sinc=False):
        """Responses of all elevations of an azimuth.

        Args:
          azimuth: one of AZIMUTHS.
          sample_rate: Hz.
          sinc: resample as torchaudio does (the original's dynamic mixing), rather than with a polyphase filter.

        Returns:
          float64 [50, taps, 2].

        Raises:
          UserError: a file is missing, unusable, or ears do not go together; there is no position near.
        """
        return _responses(self, azimuth, sample_rate, sinc)

    def response(self, azimuth, elevation, sample_rate):
        """float64 [taps, 2] of one direction; `elevation`: number of it, 0 to 49. Raises UserError, see `responses`."""
        if self.kind == "sofa" and not self.available()[AZIMUTHS.index(azimuth), elevation]:
            raise UserError(
                f"{self.path}: no position within {FARTHEST_DEG:g} degrees of azimuth {azimuth},"
                f" elevation {ELEVATION_NAMES[elevation]}; take another SOFA file, or draw the directions"
            )
        return self.responses(azimuth, sample_rate)[elevation]


def unit_vector(azimuth_deg, elevation_deg):
    """[..., 3], front, left and up, of interaural-polar angles."""
    azimuth, elevation = np.radians(azimuth_deg), np.radians(elevation_deg)
    parts = np.cos(azimuth) * np.cos(elevation), -np.sin(azimuth), np.cos(azimuth) * np.sin(elevation)
    return np.stack(np.broadcast_arrays(*parts), axis=-1)


def grid():
    """[25, 50, 3], the unit vectors of all directions."""
    return unit_vector(np.array(AZIMUTHS)[:, None], ELEVATIONS)


def find_heads(path=None, seed=0):
    """Listeners at `path`, checked.

    Args:
      path: a SOFA file, a folder of them, or one with a folder for every CIPIC listener; None: spherical heads.
      seed: integer; draws the radii of the spheres.

    Returns:
      {name: Head}, sorted.

    Raises:
      UserError: there is nothing of the kind, or a file cannot be used.
    """
    if not path:
        rng = random.Random(f"{seed} spheres")
        radii = [round(max(0.07, rng.gauss(*SPHERE_RADIUS_M)), 4) for _ in range(SPHERES)]
        return {f"sphere{i:02d}": Head(f"sphere{i:02d}", "sphere", radius_m=r) for i, r in enumerate(radii)}
    if not os.path.exists(path):
        raise UserError(f"{path}: no such file or folder; check --hrir")
    files = [path] if os.path.isfile(path) else [os.path.join(path, name) for name in sorted(os.listdir(path))]
    heads = {}
    for file in files:
        name = os.path.splitext(os.path.basename(file))[0]
        if file.lower().endswith(".sofa"):
            heads[name] = Head(name, "sofa", file)
            _sofa_nearest(file)
        elif os.path.isdir(file) and any(entry.endswith(EAR_FILES) for entry in os.listdir(file)):
            heads[os.path.basename(file)] = Head(os.path.basename(file), "cipic", file)
    if not heads:
        raise UserError(
            f"{path}: neither SOFA files nor folders of <azimuth>azleft.wav, as CIPIC's wav edition has; check --hrir"
        )
    for head in heads.values():
        _require_ears(head)
    return heads


def split_heads(heads, seed=0):
    """{set: [Head]}: CIPIC's as published, others in shares of 3 : 1 : 1; no one is in two sets.

    Fewer than three are in all sets. Sets other than tr may be empty, where some of CIPIC's listeners are missing.

    Raises:
      UserError: no one is left for tr.
    """
    if len(heads) < 3:
        return {name: list(heads.values()) for name in SETS}
    published = {int(number): name for name, numbers in CIPIC_SETS.items() for number in numbers}
    set_of = {name: published.get(cipic_number(name)) for name in sorted(heads)}
    others = [name for name in set_of if set_of[name] is None]
    random.Random(f"{seed} heads").shuffle(others)
    few = max(1, len(others) // 5)
    set_of |= {name: "cv" if i < few else "tt" if i < 2 * few else "tr" for i, name in enumerate(others)}
    chosen = {name: [heads[key] for key in set_of if set_of[key] == name] for name in SETS}
    if not chosen["tr"]:
        where = os.path.dirname(next(iter(heads.values())).path)
        raise UserError(f"{where}: all listeners are of CIPIC's sets cv and tt; add some of tr, such as subject08")
    return chosen


def cipic_number(name):
    """Number of a listener that is named as CIPIC's are, 03, subject03 or subject_003; None of another."""
    match = re.fullmatch(r"(?:subject_?)?(\d+)", name)
    return int(match[1]) if match else None


def sphere_responses(directions, radius_m, sample_rate=CIPIC_RATE_HZ, taps=SPHERE_TAPS):
    """Responses of a rigid sphere to plane waves: the series of Duda and Martens, "Range dependence of the response
    of a spherical head model", JASA 104 (1998), for a source far away. The ears lie 100 degrees from the nose, as in
    Brown and Duda, "A structural model for binaural sound synthesis" (1998).

    Args:
      directions: [..., 3], unit vectors front, left, up.

    Returns:
      float64 [..., taps, 2]; what reaches the centre of the absent head would come at tap (taps - 1) // 2.
    """
    from scipy.special import eval_legendre

    size = 1 << (2 * taps - 1).bit_length()
    frequency = np.fft.rfftfreq(size, 1 / sample_rate)
    weights = _sphere_weights(radius_m, sample_rate, size)
    ears = np.radians([EAR_AZIMUTH_DEG, -EAR_AZIMUTH_DEG])
    cosine = np.clip(directions @ np.array([np.cos(ears), np.sin(ears), [0, 0]]), -1, 1)  # [..., 2]
    spectrum = np.conj(np.tensordot(eval_legendre(np.arange(len(weights)), cosine[..., None]), weights, axes=1))
    spectrum = np.concatenate([np.ones((*cosine.shape, 1)), spectrum], axis=-1)  # [..., 2, frequencies]
    spectrum *= np.exp(-2j * np.pi * frequency / sample_rate * ((taps - 1) // 2))
    return np.moveaxis(np.fft.irfft(spectrum, size)[..., :taps], -1, -2)


# Inside -------------------------------------------------------------------------------------------


@functools.lru_cache(256)
def _available(head):
    if head.kind == "sofa":
        return _sofa_nearest(head.path)[1]
    have = np.ones(len(AZIMUTHS), bool)
    if head.kind == "cipic":
        names = set(os.listdir(head.path))
        for row, azimuth in enumerate(AZIMUTHS):
            absent = [ear for ear in EARS if _cipic_path("", azimuth, ear) not in names]
            if len(absent) == 1:
                path = _cipic_path(head.path, azimuth, absent[0])
                raise UserError(f"{path}: no such file, the other ear's is there; take CIPIC's wav edition whole")
            have[row] = not absent
    return np.repeat(have[:, None], len(ELEVATIONS), axis=1)


@functools.lru_cache(64)
def _sphere_weights(radius_m, sample_rate, size):
    """Weights of the Legendre polynomials, complex [orders, frequencies but 0]."""
    from scipy.special import spherical_jn, spherical_yn

    mu = 2 * np.pi * np.fft.rfftfreq(size, 1 / sample_rate)[1:] * radius_m / SOUND_M_PER_S
    orders = np.arange(int(1.5 * mu[-1]) + 12)[:, None]
    with np.errstate(all="ignore"):  # of an order far above mu the derivative is infinite, and its share 0
        slope = spherical_jn(orders, mu, True) + 1j * spherical_yn(orders, mu, True)
        weights = (-1j) ** (orders - 1) * (2 * orders + 1) / slope / mu**2
    return np.where(np.isfinite(weights), weights, 0)


@functools.lru_cache(1024)
def _responses(head, azimuth, sample_rate, sinc):
    responses, rate = _measured(head, azimuth)
    return _resampled(responses, rate, sample_rate, sinc)


def _measured(head, azimuth):
    """(responses float64 [50, taps, 2] of an azimuth as they are stored, their rate in Hz)."""
    if head.kind == "cipic":
        return _cipic(head.path, azimuth), CIPIC_RATE_HZ
    if head.kind == "sphere":
        return sphere_responses(unit_vector(azimuth, ELEVATIONS), head.radius_m), CIPIC_RATE_HZ
    _, measured, rate = _sofa(head.path)
    return measured[_sofa_nearest(head.path)[0][AZIMUTHS.index(azimuth)]], rate


def _resampled(responses, rate, sample_rate, sinc):
    """[elevations, taps, 2] at another rate."""
    if rate == sample_rate:
        return responses
    change = resample_sinc if sinc else resample
    return np.moveaxis(change(np.moveaxis(responses, 1, 0), rate, sample_rate), 0, 1)


def _cipic_path(folder, azimuth, ear):
    return os.path.join(folder, f"{'neg' if azimuth < 0 else ''}{abs(azimuth)}az{ear}.wav")


def _cipic(folder, azimuth):
    """float64 [50, taps, 2], 16-bit numbers. A frame is an elevation, a channel a tap."""
    import soundfile

    ears, shapes = [], []
    for ear in EARS:
        path = _cipic_path(folder, azimuth, ear)
        if not os.path.exists(path):
            raise UserError(f"{path}: no such file; take CIPIC's wav edition whole, or check --hrir")
        info = wav_info(path)
        if info.sample_rate != CIPIC_RATE_HZ or info.frames != len(ELEVATIONS):
            raise UserError(
                f"{path}: {info.sample_rate} Hz and {info.frames} frames, {CIPIC_RATE_HZ} Hz and a frame for each of"
                f" {len(ELEVATIONS)} elevations are needed; take CIPIC's wav edition as it is"
            )
        ears.append(soundfile.read(path, dtype="int16", always_2d=True)[0].astype(np.float64))
        shapes.append(info.channels)
    if shapes[0] != shapes[1]:
        raise UserError(
            f"{_cipic_path(folder, azimuth, 'right')}: {shapes[1]} taps, the left ear has {shapes[0]};"
            " take both from one edition"
        )
    return np.stack(ears, axis=-1)


@functools.lru_cache(64)
def _sofa(path):
    """(positions [M, 3] as unit vectors, responses float64 [M, taps, 2], rate in Hz) of a SOFA file."""
    import h5py  # here, as few need it; Keras brings it

    try:
        with h5py.File(path, "r") as file:
            kind = _text(file.attrs.get("SOFAConventions", ""))
            absent = [name for name in ("Data.IR", "SourcePosition", "Data.SamplingRate") if name not in file]
            if absent:
                raise UserError(f"{path}: SOFA file ({kind or 'of no convention'}) without {absent[0]}; impulse"
                                " responses are needed, e.g. of the convention SimpleFreeFieldHRIR")  # fmt: skip
            responses = np.moveaxis(np.asarray(file["Data.IR"], np.float64), 1, 2)
            rates = np.unique(file["Data.SamplingRate"])
            position = np.asarray(file["SourcePosition"], np.float64)
            spherical = _text(file["SourcePosition"].attrs.get("Type", "spherical")) == "spherical"
            delay = np.asarray(file["Data.Delay"], np.float64) if "Data.Delay" in file else np.zeros((1, 2))
            receivers = np.asarray(file["ReceiverPosition"], np.float64) if "ReceiverPosition" in file else None
    except OSError as error:
        raise UserError(f"{path}: not a SOFA file ({error}); download it again") from error
    if responses.ndim != 3 or responses.shape[2] != 2:
        raise UserError(f"{path}: {responses.shape[-1]} receivers, the two ears of a listener are needed")
    if len(rates) != 1 or len(position) not in (1, len(responses)) or not np.isfinite(responses).all():
        raise UserError(f"{path}: its responses have no single rate, no position each, or samples that are not finite")
    if spherical:
        azimuth, elevation = np.radians(position[:, :2]).T
        vectors = np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)
        vectors = np.stack(vectors, axis=1)
    else:
        vectors = position / np.maximum(1e-9, np.linalg.norm(position, axis=1, keepdims=True))
    delay = np.broadcast_to(np.round(delay), (len(responses), 2)).astype(int)
    if delay.any():
        taps = responses.shape[1]
        place = np.arange(taps + delay.max())[:, None] - delay[:, None]  # [M, taps, 2]
        known = (place >= 0) & (place < taps)
        responses = np.where(known, np.take_along_axis(responses, np.clip(place, 0, taps - 1), axis=1), 0)
    # The first receiver is the left one, unless the file says that it lies on the right.
    if receivers is not None and receivers.reshape(2, -1)[0, 1] < 0 < receivers.reshape(2, -1)[1, 1]:
        responses = responses[..., ::-1]
    return np.broadcast_to(vectors, (len(responses), 3)), responses, int(round(float(rates[0])))


@functools.lru_cache(64)
def _sofa_nearest(path):
    """(number of the nearest position of every direction int [25, 50], whether it is near enough bool [25, 50])."""
    vectors, _, _ = _sofa(path)
    cosine = grid() @ vectors.T
    nearest = cosine.argmax(axis=-1)
    azimuth = np.degrees(np.arcsin(np.clip(-vectors[nearest, 1], -1, 1)))
    aside = np.abs(azimuth - np.array(AZIMUTHS)[:, None]) > FARTHEST_AZIMUTH_DEG
    return nearest, (cosine.max(axis=-1) >= np.cos(np.radians(FARTHEST_DEG))) & ~aside


def _text(value):
    return value.decode() if isinstance(value, bytes) else str(value)


def _require_ears(head):
    """Raises UserError if responses are missing, or right is left at any azimuth."""
    have = head.available()
    if have.any(axis=1).sum() < 3:
        raise UserError(
            f"{head.path}: positions near {have.any(axis=1).sum()} of {len(AZIMUTHS)} azimuths between -80 and 80"
            " degrees, three are needed; take a file that covers the horizontal plane"
        )
    beyond = {}  # of the far ear, dB
    for row in np.flatnonzero(have.any(axis=1)):
        azimuth = AZIMUTHS[row]
        if abs(azimuth) >= LATERAL_DEG:
            left, right = np.sum(np.square(_measured(head, azimuth)[0][have[row]]), axis=(0, 1)) + 1e-30
            beyond[azimuth] = 10 * np.sign(azimuth) * np.log10(left / right)
    wrong = [azimuth for azimuth in beyond if beyond[azimuth] > SWAPPED_DB]
    if wrong:
        path = _cipic_path(head.path, wrong[0], "left") if head.kind == "cipic" else head.path
        raise UserError(
            f"{path}: at {len(wrong)} of {len(beyond)} lateral azimuths, {wrong[0]} the first, the far ear is louder"
            " than the near one; the ears are swapped, swap the channels or the names of the files"
        )
