"""Speaks lines of English with one eSpeak NG voice: a program of its own, using the standard library only.

It is kept apart from the toolkit for two reasons. The library carries hidden state from call to call,
so only a fresh process for every talker makes the audio reproducible; and eSpeak NG is GPL software,
which the toolkit talks to over pipes and never links.

stdin: JSON {"dialect", "variant", "words_per_minute", "lines"}, where `variant` is the text of a voice file.
stdout: for every line, its size in bytes (little-endian int64), then int16 samples at 22 050 Hz.
"""

import ctypes
import json
import os
import shutil
import struct
import sys
import tempfile

import espeakng_loader

SAMPLE_RATE_HZ = 22050
SHARED_DATA = ("phondata", "phonindex", "phontab", "intonations", "en_dict")
LONGEST_DATA_PATH = 120  # somewhat beyond it the library ends the whole process without a word

AUDIO_TO_CALLBACK = 2
RATE, VOLUME = 1, 2
UTF8 = 1


def make_data_folder(folder, dialect, variant):
    """Copies the data that English needs to `folder` and adds the voice as variant "talker"."""
    source = espeakng_loader.get_data_path()
    root = os.path.join(folder, "espeak-ng-data")
    languages = os.path.join("lang", "gmw")
    os.makedirs(os.path.join(root, languages))
    os.makedirs(os.path.join(root, "voices", "!v"))
    for name in SHARED_DATA:
        shutil.copy(os.path.join(source, name), root)
    shutil.copy(os.path.join(source, languages, dialect), os.path.join(root, languages))
    with open(os.path.join(root, "voices", "!v", "talker"), "w", encoding="utf-8") as file:
        file.write(variant)


def speak(data_folder, dialect, words_per_minute, lines):
    """Yields the audio of every line as bytes (int16, 22 050 Hz)."""
    if len(data_folder) > LONGEST_DATA_PATH:
        sys.exit(f"{data_folder}: the path is too long for eSpeak NG; set TMPDIR to a shorter folder")
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    if library.espeak_Initialize(AUDIO_TO_CALLBACK, 0, data_folder.encode(), 0) != SAMPLE_RATE_HZ:
        sys.exit(f"{data_folder}: eSpeak NG did not start from its data there")
    audio = bytearray()

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    def collect(samples, count, _events):
        if samples and count > 0:
            audio.extend(ctypes.string_at(samples, 2 * count))
        return 0

    library.espeak_SetSynthCallback(collect)
    if library.espeak_SetVoiceByName(f"{dialect}+talker".lower().encode()):
        sys.exit(f"{dialect}: eSpeak NG has no such voice")
    library.espeak_SetParameter(RATE, words_per_minute, 0)
    library.espeak_SetParameter(VOLUME, 40, 0)  # at the default of 100 two voices in three clip
    for line in lines:
        audio.clear()
        text = line.encode()
        library.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 1, 0, UTF8, None, None)
        library.espeak_Synchronize()
        yield bytes(audio)
    library.espeak_Terminate()


def main():
    request = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as folder:
        make_data_folder(folder, request["dialect"], request["variant"])
        for audio in speak(folder, request["dialect"], request["words_per_minute"], request["lines"]):
            sys.stdout.buffer.write(struct.pack("<q", len(audio)) + audio)


if __name__ == "__main__":
    main()
