"""The system from waveform to waveforms."""

from nn.systems.system import Exported
from toy_system.recordings import ToyRecordings


def export(checkpoints):
    system = ToyRecordings(checkpoints)
    return Exported(system.model, system.model, system.sample_rate, system.talkers, {})
