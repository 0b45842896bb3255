"""Reading and writing of audio files. A file that cannot be used is refused by name, with the mend."""

import io
import os
import struct
from typing import NamedTuple

import numpy as np
import soundfile

from feat.base.files import UserError, atomic_path

FULL_SCALE = 32768  # int16 value of a float sample of 1.0
_STREAMED = 0xFFFFFFFF  # data size that programs writing to a pipe leave in the header


class WavInfo(NamedTuple):
    """What the header of an audio file says."""

    frames: int
    sample_rate: int  # Hz
    channels: int
    subtype: str  # soundfile's name of the sample format, such as "PCM_16"

    @property
    def seconds(self):
        return self.frames / self.sample_rate


def wav_info(path):
    """Header of the audio file `path`, without reading its samples.

    Raises:
      UserError: the file is missing, empty, truncated, a SPHERE file, or no audio at all.
    """
    _refuse_unreadable(path)
    try:
        header = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        raise UserError(f"{path}: not an audio file ({error.error_string}); convert it to 16-bit PCM wav") from error
    if header.frames == 0:
        raise UserError(f"{path}: holds 0 samples; make it again")
    return WavInfo(header.frames, header.samplerate, header.channels, header.subtype)


def duration(path):
    """Length of the audio file `path` in seconds, from its header."""
    return wav_info(path).seconds


def read_mono(path, sample_rate=None):
    """Samples of a mono audio file of any format that soundfile reads.

    Args:
      path: a file with one channel.
      sample_rate: Hz that the file must have; None takes any.

    Returns:
      float32 [samples], full scale is 1.

    Raises:
      UserError: the file is unusable (see `wav_info`), has more channels or another rate, or holds
        samples that are not finite.
    """
    info = wav_info(path)
    _require_layout(path, info, sample_rate)
    samples = _read(path, info, "float32")
    broken = np.flatnonzero(~np.isfinite(samples))
    if broken.size:
        raise UserError(
            f"{path}: {broken.size} of {samples.size} samples are NaN or infinite,"
            f" the first at {broken[0]}; make it again"
        )
    return samples


def read_first_channel(path, sample_rate, parity=False, begin=0, end=None):
    """float32 samples [begin, end) of the first channel of any file, at `sample_rate` Hz.

    Args:
      parity: resample as torchaudio does.

    Raises:
      UserError: there are NaN or infinite samples.
    """
    rate = soundfile.info(path).samplerate
    whole = rate != sample_rate
    span = {} if whole else {"start": begin, "stop": end}
    samples = np.ascontiguousarray(soundfile.read(path, dtype="float32", always_2d=True, **span)[0][:, 0])
    if not np.isfinite(samples).all():
        raise UserError(f"{path}: holds NaN or infinite samples; make it again")
    if whole:
        samples = (resample_sinc if parity else resample)(samples, rate, sample_rate)[begin:end]
    return samples.astype(np.float32)


def read_stereo(path, sample_rate=None):
    """`read_mono` for a recording of two ears: float32 [samples, 2], left and right."""
    info = wav_info(path)
    require_stereo(path, info, sample_rate)
    samples = _read(path, info, "float32")
    if not np.isfinite(samples).all():
        raise UserError(f"{path}: {np.sum(~np.isfinite(samples))} samples are NaN or infinite; make it again")
    return samples


def require_stereo(path, info, sample_rate=None):
    """Raises UserError if the header `info` of `path` is not that of two ears at `sample_rate`."""
    if info.channels != 2:
        raise UserError(
            f"{path}: {info.channels} channel{'s' * (info.channels > 1)}, the two of a binaural recording are needed"
        )
    _require_rate(path, info, sample_rate)


def read_resampled(path, sample_rate):
    """`read_mono`, brought to `sample_rate` Hz if the file has another rate."""
    return resample(read_mono(path), wav_info(path).sample_rate, sample_rate)


def read_pcm16(path, sample_rate=None):
    """Samples of a 16-bit PCM mono file, as stored: int16 [samples]. Refuses what `read_mono` refuses."""
    info = wav_info(path)
    _require_layout(path, info, sample_rate)
    if info.subtype != "PCM_16":
        raise UserError(f"{path}: samples are {info.subtype}, 16-bit PCM is needed; convert it, e.g. sox IN -b 16 OUT")
    return _read(path, info, "int16")


def samples_offset(path):
    """Byte where the samples of a wav begin that `wav_info` took; -1: no RIFF wav, only soundfile can read it."""
    with open(path, "rb") as file:
        if _is_riff_wav(file.read(12)) and _enter_data(file) is not None:
            return file.tell()
    return -1


def to_int16(samples):
    """Rounds float samples in [-1, 1] to int16, full scale 32768; +1 becomes 32767. No dither.

    Raises:
      ValueError: a sample is not finite or beyond full scale; nothing is ever clipped silently.
    """
    samples = np.asarray(samples)
    peak = np.max(np.abs(samples), initial=0)
    if not peak <= 1:  # also when it is NaN
        raise ValueError(f"the peak is {peak:.4g}, samples must lie within -1 and 1")
    return np.minimum(np.round(FULL_SCALE * samples), FULL_SCALE - 1).astype(np.int16)


def write_pcm16(path, samples, sample_rate):
    """Writes a 16-bit wav, whole or not at all.

    Args:
      path: the wav file; its folder is made if need be.
      samples: [samples] or [samples, channels], int16 as they are or floats in [-1, 1].
      sample_rate: Hz.

    Raises:
      UserError: float samples are not finite or beyond full scale.
    """
    samples = np.asarray(samples)
    if samples.dtype != np.int16:
        try:
            samples = to_int16(samples)
        except ValueError as error:
            raise UserError(f"{path}: not written, {error}; scale the signal down") from error
    write_wav(path, samples, sample_rate, "PCM_16")


def write_float(path, samples, sample_rate):
    """Writes a wav of 32-bit floats, whole or not at all; `samples`: [samples] or [samples, channels]."""
    write_wav(path, np.asarray(samples, np.float32), sample_rate, "FLOAT")


def read_blocks(path, channel=None, seconds=10.0):
    """One channel of an audio file of any format, some seconds at a time.

    Args:
      path: the file.
      channel: which; None: the mean of all.

    Yields:
      float32 [samples], full scale is 1.

    Raises:
      UserError: the file is unusable (see `wav_info`), cut short, or holds samples that are not finite.
    """
    info = wav_info(path)
    read = 0
    try:
        for block in soundfile.blocks(path, int(seconds * info.sample_rate), dtype="float32", always_2d=True):
            if not np.isfinite(block).all():
                raise UserError(f"{path}: holds NaN or infinite samples; make it again")
            read += len(block)
            yield block.mean(axis=1) if channel is None else np.ascontiguousarray(block[:, channel])
    except soundfile.LibsndfileError as error:
        raise UserError(f"{path}: cannot be read to its end ({error.error_string}); make it again") from error
    if read != info.frames:
        raise UserError(f"{path}: {read} of {info.frames} samples are there; make it again")


def resample_blocks(blocks, from_hz, to_hz, seconds=1.0):
    """`resample` for a signal that comes in blocks [samples]: yields blocks that together are what it gives.

    They are `seconds` long, about; what comes out is late by that and the filter, 20 ms or less.
    """
    if from_hz == to_hz:
        yield from blocks
        return
    common = np.gcd(from_hz, to_hz)
    up, down = to_hz // common, from_hz // common
    around = 10 * max(up, down) // (up * down) + 2  # half the filter, in periods of `down` samples in, `up` out
    periods = max(1, round(seconds * from_hz) // down)  # of a piece
    size = (periods + 2 * around) * down
    buffer, taken, given = np.zeros(around * down, np.float32), 0, 0

    def piece():
        return resample(buffer[:size], from_hz, to_hz)[around * up : (around + periods) * up]

    for block in blocks:
        taken += len(block)
        buffer = np.concatenate([buffer, block])
        while len(buffer) >= size:
            yield piece()
            given += periods * up
            buffer = buffer[periods * down :]
    total = -(-taken * to_hz // from_hz)
    while given < total:
        buffer = np.pad(buffer, (0, max(0, size - len(buffer))))
        yield piece()[: total - given]
        given += periods * up
        buffer = buffer[periods * down :]


def resample(samples, from_hz, to_hz):
    """Changes the sample rate of `samples` ([samples], floats; the precision is kept).

    Zero-phase polyphase FIR, Kaiser window with beta 5 (the design of MATLAB's resample);
    ceil(samples * to_hz / from_hz) samples come out.
    """
    if from_hz == to_hz:
        return samples
    from scipy.signal import resample_poly  # here, as it takes 40 MB that training has no use for

    return resample_poly(samples, to_hz, from_hz)


def resample_sinc(samples, from_hz, to_hz, zero_crossings=6, rolloff=0.99):
    """`resample` with the filter of torchaudio: a sinc of so many zero crossings under a Hann window.

    ceil(samples * to_hz / from_hz) samples come out. Shorter than the filter of `resample`, and so less sharp;
    for what must agree with systems that read their audio with torchaudio.
    """
    if from_hz == to_hz:
        return samples
    from scipy.signal import resample_poly

    samples = np.asarray(samples)
    common = np.gcd(from_hz, to_hz)
    up, down = to_hz // common, from_hz // common
    cutoff = rolloff * min(up, down)
    half = int(np.ceil(zero_crossings / cutoff * up * down))
    time = np.clip(np.arange(-half, half + 1) * (cutoff / (up * down)), -zero_crossings, zero_crossings)
    taps = np.sinc(time) * np.cos(np.pi * time / (2 * zero_crossings)) ** 2 * (cutoff / down)
    # resample_poly multiplies the filter by `up`.
    return resample_poly(samples.astype(np.float64), up, down, window=taps / up).astype(samples.dtype)


def write_wav(path, samples, sample_rate, subtype):
    """Writes a wav of a sample format that libsndfile names so, whole or not at all; integers are clipped."""
    # Through memory, because of a full disk soundfile says "system error" and the file system says which.
    wav = io.BytesIO()
    soundfile.write(wav, samples, sample_rate, subtype=subtype, format="WAV")
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(wav.getbuffer())


def _read(path, info, dtype):
    """All samples of a file whose header is `info`. Raises UserError if some are missing."""
    try:
        samples, _ = soundfile.read(path, dtype=dtype)
    except soundfile.LibsndfileError as error:
        raise UserError(f"{path}: broken ({error.error_string}); make it again") from error
    if len(samples) != info.frames:
        raise UserError(f"{path}: truncated, {len(samples)} of {info.frames} samples can be read; make it again")
    return samples


def _require_layout(path, info, sample_rate):
    if info.channels != 1:
        raise UserError(f"{path}: {info.channels} channels, 1 is needed; keep one, e.g. sox IN OUT remix 1")
    _require_rate(path, info, sample_rate)


def _require_rate(path, info, sample_rate):
    if sample_rate is not None and info.sample_rate != sample_rate:
        raise UserError(
            f"{path}: {info.sample_rate} Hz, {sample_rate} Hz is needed; resample it, e.g. sox IN -r {sample_rate} OUT"
        )


def _refuse_unreadable(path):
    """Raises UserError for what soundfile would misread or name badly."""
    if not os.path.exists(path):
        raise UserError(f"{path}: no such file; check the data folder and the list")
    if os.path.isdir(path):
        raise UserError(f"{path}: a folder, not an audio file")
    with open(path, "rb") as file:
        start = file.read(12)
        if not start:
            raise UserError(f"{path}: empty (0 bytes); make it again")
        if str(path).lower().endswith(".wv2"):
            raise UserError(
                f"{path}: the second microphone of WSJ0; decode the .wv1 file, the close-talk channel,"
                " e.g. sph2pipe -f wav IN.wv1 OUT.wav"
            )
        if start.startswith(b"NIST_1A"):
            raise UserError(f"{path}: a SPHERE file, not a wav; decode it, e.g. sph2pipe -f wav IN OUT.wav")
        if _is_riff_wav(start):
            _refuse_short_data(path, file)


def _refuse_short_data(path, file):
    """Refuses an open wav, read up to its first chunk: soundfile takes a cut data chunk for a shorter recording."""
    promised = _enter_data(file)
    if promised is None:
        raise UserError(f"{path}: truncated, the wav has no samples; make it again")
    present = os.fstat(file.fileno()).st_size - file.tell()
    if promised not in (0, _STREAMED) and promised > present:
        raise UserError(
            f"{path}: truncated, the header promises {promised} bytes of samples, {present} are there; make it again"
        )


def _is_riff_wav(start):
    """Whether a file whose first 12 bytes are `start` is a wav, its numbers the lowest byte first."""
    return start[:4] == b"RIFF" and start[8:] == b"WAVE"


def _enter_data(file):
    """Walks the chunks of an open wav to its first sample. Gives the bytes that are promised; None: no samples."""
    while len(header := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", header)
        if name == b"data":
            return size
        file.seek(size + size % 2, os.SEEK_CUR)
    return None
