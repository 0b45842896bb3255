"""What exported models of all systems share."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("deep_casa.layers")
class OneRecording(keras.Model):
    """A separator without the axis of the batch: [samples] -> [talkers, samples], or of several waveforms.

    Args:
        separator: model of [batch, samples], once or several times, -> [batch, talkers, samples].
    """

    def __init__(self, separator, **kwargs):
        super().__init__(**{"name": "one_recording"} | kwargs)
        self.separator = separator
        self.built = separator.built

    def call(self, *waveforms):
        return ops.squeeze(self.separator(*(ops.expand_dims(waveform, 0) for waveform in waveforms)), 0)

    def get_config(self):
        return {"name": self.name, "separator": keras.saving.serialize_keras_object(self.separator)}

    @classmethod
    def from_config(cls, config):
        return cls(**config | {"separator": keras.saving.deserialize_keras_object(config["separator"])})
