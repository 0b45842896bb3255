"""Separates recordings of any format, rate, number of channels and length with a trained system.

    python nn/separate.py --resume_model exp/deep_casa/models in.wav [more.flac | folder] --output_dir out
    python nn/separate.py --resume_model exp/spex_plus/models --enrolment voice.wav in.wav --output_dir out
    python nn/separate.py --resume_model exp/looking_to_listen/models --video talk.mp4 [--render] --output_dir out

--resume_model names a checkpoint of each stage (give it twice), or a folder below which they lie. config.json beside
a checkpoint says which system it is, its sizes and its rate. Writes out/<name>_s1.wav, _s2.wav, ...; SpEx+, which
extracts the talker of the enrolment, _s1.wav alone; Binaural TasNet takes recordings of two ears, and writes stereo;
DiffSep for enhancement writes the speech as _s1.wav, the noise as _s2.wav. Looking to Listen writes the voice of every
face of a video, from left to right, see nn/systems/looking_to_listen/video.py.

Long files go through in overlapping windows, in memory that does not grow with their length. Causal systems go from
block to block instead, as nn/live.py does (--grouping online), and their latency and real-time factor are printed;
SpEx+ only if told so, as windows know the level of the whole recording.

    from nn.separate import Separator
    talkers = Separator("exp/deep_casa/models")(waveform, sample_rate)      # [talkers, samples]
    talker, = Separator("exp/spex_plus/models")(waveform, sample_rate, enrolment="voice.wav")
    talkers = Separator("exp/binaural_tasnet/models")(ears, sample_rate)    # [2, samples] -> [talkers, 2, samples]
"""

import hashlib
import sys

from feat.base.script import run_script

import numpy as np
from absl import flags

from feat.avspeech.clips import faces_path
from feat.base.files import UserError, make_writable_directory, stamps
from feat.signals.audio import wav_info
from nn.checkpoints import readers
from nn.recordings.journal import Done
from nn.recordings.windows import OVERLAP_S, WINDOW_S
from nn.systems.separator import Separator, list_inputs, output_paths, presence_lines, separate_file
from nn.systems.trained import define_options, find_checkpoints, options_of_flags, system_of

FLAGS = flags.FLAGS


def main(argv):
    if len(argv) < 2 and not FLAGS.video:
        raise UserError("no recording given: python nn/separate.py --resume_model PREFIX in.wav --output_dir out")
    if not FLAGS.resume_model:
        raise UserError("--resume_model is missing: the prefix of each stage's checkpoint, or the folder of both")
    inputs = list_inputs([*argv[1:], *FLAGS.video])
    checkpoints = find_checkpoints(FLAGS.resume_model)
    options = options_of_flags(system_of(checkpoints))
    separator = Separator(checkpoints.values(), FLAGS.window_seconds, FLAGS.overlap_seconds, FLAGS.grouping, **options)
    system = separator.system
    if separator.channels and FLAGS["channels"].present:
        raise UserError(f"--channels: {system.NAME} takes both ears of a recording together; leave it out")
    names = ["window_seconds", "overlap_seconds", "grouping", "subtype", "channels"]
    voice = separator.enrol(FLAGS.enrolment)
    if system.FACES:
        if len(argv) > 1:
            raise UserError(f"{argv[1]}: {system.NAME} separates by faces; give a video, --video {argv[1]}")
        voice = system_of(checkpoints).load("video").embedder_of(system, FLAGS.face_weights)
        names += ["detector", "render"]
    elif FLAGS.video:
        raise UserError(f"--video: {system.NAME} does not look at faces; give a checkpoint of a system that does")
    make_writable_directory(FLAGS.output_dir)
    digests = {system: readers.fingerprint(prefix) for system, prefix in separator.checkpoints.items()}
    options |= {name: FLAGS[name].value for name in names}
    if system.ENROLMENT:
        options |= {"voice": hashlib.sha256(voice.tobytes()).hexdigest(), "threshold": system.threshold}
    done = Done(FLAGS.output_dir, digests | options)
    failed = 0
    for path, name in inputs:
        try:
            print((_separate_video if system.FACES else _separate)(separator, path, name, voice, done))
        except UserError as error:
            if len(inputs) == 1:
                raise
            failed += 1
            print(f"error: {error}", file=sys.stderr, flush=True)
    if separator.stream is not None and separator.stream.samples:
        print(f"causal: {separator.stream.say_latency()}; {separator.stream.say_speed()}")
    if failed:
        raise UserError(
            f"{failed} of {len(inputs)} recordings were not separated; the others lie in {FLAGS.output_dir}"
        )


def _separate_video(separator, path, name, embedder, done):
    """Separates a video unless that was done; says what was written."""
    video = system_of(separator.checkpoints).load("video")
    inputs = stamps([path, *([faces_path(path)] if FLAGS.detector == "told" else [])])
    if done.has(name, inputs):
        return f"{path}: separated already"
    options = dict(detector=FLAGS.detector, subtype=FLAGS.subtype, render=FLAGS.render)
    lines, files = video.separate_video(separator, path, FLAGS.output_dir, name, embedder, **options)
    done.add(name, inputs, files)
    return "\n".join(lines)


def _separate(separator, path, name, voice, done):
    """Separates a recording unless that was done; says what was written."""
    inputs, info = stamps([path]), wav_info(path)
    if done.has(name, inputs):
        return f"{path}: separated already"
    together = separator.channels or FLAGS.channels == "mean" or info.channels == 1
    channels = [None] if together else range(info.channels)
    outputs = output_paths(FLAGS.output_dir, name, separator.talkers, channels)
    factor, confidences = separate_file(separator, path, outputs, FLAGS.subtype, voice=voice)
    done.add(name, inputs, outputs.values())
    lines = [f"{path}: {info.seconds:.1f} s, {', '.join(outputs.values())}"]
    if factor < 1:
        quieter = -20 * np.log10(factor)
        lines.append(f"{path}: its parts were made quieter by {quieter:.1f} dB, together, to fit {FLAGS.subtype}")
    return "\n".join(lines + presence_lines(separator.system, path, confidences))


main.takes_arguments = True


def define_flags():
    """Flags of the command."""
    flags.DEFINE_multi_string("resume_model", [], "checkpoint of a stage (give it for each), or a folder with all")
    flags.DEFINE_string("output_dir", "separated", "folder of the separated files")
    flags.DEFINE_enum("channels", "mean", ["mean", "each"], "separate the mean of a recording's channels, or each")
    flags.DEFINE_enum("subtype", "PCM_16", ["PCM_16", "PCM_24", "PCM_32", "FLOAT"], "sample format of the outputs")
    flags.DEFINE_float(
        "window_seconds", WINDOW_S, "what the networks see at once; memory grows with it", lower_bound=0.1
    )
    flags.DEFINE_float("overlap_seconds", OVERLAP_S, "of neighbouring windows, cross-faded", lower_bound=0.01)
    flags.DEFINE_enum(
        "grouping",
        "auto",
        ["auto", "online", "kmeans"],
        "online: frame by frame, for causal checkpoints; kmeans: over the whole file; auto: as the system prefers",
    )
    flags.DEFINE_integer("seed", 0, "seed of what is drawn: starts of the clustering, noise", lower_bound=0)
    flags.DEFINE_multi_string("video", [], "video, for systems that separate the voices of the faces in it; repeat")
    flags.DEFINE_multi_string("enrolment", [], "recording of the wanted talker, for systems that extract one; repeat")
    define_options()


if __name__ == "__main__":
    define_flags()
    run_script(main)
