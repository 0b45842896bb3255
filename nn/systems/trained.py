"""Trained systems as nn/separate.py, nn/demo.py, nn/live.py and nn/export.py use them.

nn.systems.registry lists them. The class that processes the recordings of a system is called with {checkpoint name:
prefix} and some of the system's options, and has

    NAME            for messages
    ENROLMENT       whether it extracts the talker of an enrolment, which `separate` is then given
    FACES           whether it goes by the faces of a video, whose `embeddings` `separate` is then given too
    sample_rate     Hz of what it takes and gives
    hop_size        samples of a frame; windows are counted in frames
    talkers         how many come out
    CHANNELS        of a recording that go in together, and come out for every talker: 2 where these are a left and a
                    right ear; None for systems of one channel, [samples] below, where else [CHANNELS, samples] stands
    causal          whether nn/separate.py goes from block to block, with `live`, unless it is told otherwise
    frames(samples), spool_bytes(samples)
                    what a recording of so many samples will be: frames, and bytes to spool
    separate(samples, windows, spool, bar, enrolment)
                    yields float32 [talkers, some samples], one after the other as many as there are in `samples`
                    ([samples] at sample_rate, an array or anything that has a shape and gives slices), in memory that
                    does not depend on their number; `windows` is a nn.recordings.windows.Windows, `spool` a binary file
                    open for writing and reading, `bar` a progress bar that is told of every window twice
    LATENCY         what the algorithmic latency comes from
    stream(enrolment)
                    a models.layers.streaming.WaveformStream; raises UserError if the system is not causal. One that
                    needs an enrolment has `set_enrolment` too, and takes None here, for nobody yet
    live(stream, blocks)
                    yields float32 [talkers, some samples] of blocks [samples] that go through such a stream
"""

import os

import numpy as np
from absl import flags

from feat.base.files import UserError
from nn.checkpoints import readers
from nn.systems import registry

FLAGS = flags.FLAGS


def system_of(checkpoints):
    """The System of {checkpoint name: prefix}, see `find_checkpoints`."""
    return registry.by_checkpoint()[next(iter(checkpoints))]


def find_checkpoints(given):
    """{system: prefix} of prefixes, or of folders, see nn.checkpoints.readers.find_best.

    Raises:
        UserError: there is none, there are several of one system, or they do not belong together.
    """
    systems, known = {}, registry.by_checkpoint()
    for prefix in readers.find_best(given):
        system = readers.open_reader(prefix).system
        if system not in known:
            raise UserError(f"{prefix}: holds {system}, which cannot separate; give one of {', '.join(known)}")
        if system in systems:
            raise UserError(
                f"{prefix} and {systems[system]} are both of {system}; name the one to take: --resume_model PREFIX"
            )
        systems[system] = prefix
    kinds = {known[system].name: prefix for system, prefix in systems.items()}
    if len(kinds) > 1:
        raise UserError(f"{' and '.join(kinds.values())} are of different systems; give the checkpoints of one")
    return systems


def enrol(system, enrolments, sample_rate=None):
    """The voice that a system extracts, for its `separate` and `stream`; None where it takes all talkers apart.

    Args:
        enrolments: recordings of the wanted talker, one or several: paths, or [samples] at a sample rate in Hz.

    Raises:
        UserError: there are none and the system needs them, or the other way round, or one is of no use.
    """
    several = not isinstance(enrolments, (str, os.PathLike, np.ndarray))
    given = enrolments is not None and not (several and len(enrolments) == 0)
    if system.ENROLMENT:
        if not given:
            raise UserError("no enrolment: give a recording of the wanted talker alone, --enrolment VOICE.wav")
        return system.enrol(enrolments, sample_rate)
    if given:
        raise UserError(f"--enrolment: {system.NAME} takes all talkers apart and needs none; leave it out")
    return None


def make_system(checkpoints, **options):
    """The processor of recordings of {checkpoint name: prefix}; `options` are some of those of its System."""
    return system_of(checkpoints).make(checkpoints, **options)


def define_options(live=False):
    """Defines the flags that single systems need, for nn/separate.py or for nn/live.py."""
    for system in registry.SYSTEMS:
        system.define_options(live)


def options_of_flags(system):
    """Options of a System from those flags that the command has.

    Raises:
        UserError: a flag of another system was given.
    """
    options = {}
    for name in dict.fromkeys(option for other in registry.SYSTEMS for option in other.options):
        if name not in FLAGS:
            continue
        if name in system.options:
            options[name] = FLAGS[name].value
        elif FLAGS[name].present:
            raise UserError(f"--{name}: {system.title} has no use for it; leave it out")
    return options
