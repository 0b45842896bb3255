"""Deep CASA from waveform to waveforms, for nn/export.py."""

from models.deep_casa.waveforms import DeepCasaSeparator
from nn.systems.deep_casa.recordings import DeepCasa
from nn.systems.system import Exported


def export(checkpoints):
    """Exported of the stages, {checkpoint name: prefix}."""
    system = DeepCasa(checkpoints)
    nets, sizes = (system.unet, system.grouping), (system.fft_size, system.hop_size)
    return Exported(
        DeepCasaSeparator(*nets, *sizes),
        DeepCasaSeparator(*nets, *sizes, real=True),
        system.sample_rate,
        system.talkers,
        {"fft_size": system.fft_size, "hop_size": system.hop_size, "causal": system.unet.causal},
    )
