"""SpEx+ from waveforms to waveforms, as it is exported."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("deep_casa.spex_plus")
class TargetExtractor(keras.Model):
    """SpEx+ from the waveforms of a mixture and an enrolment to that of the enrolled talker, in one graph.

    Call: [1, samples], [1, samples'] -> [1, 1, samples], float32, at the rate of training: the short window's estimate,
    as loud as it is in the mixture by least squares. A mixture that is shorter than a window is filled up with zeros,
    an enrolment that is too short repeated.

    Args:
        model: SpexPlus.
    """

    def __init__(self, model, **kwargs):
        super().__init__(**{"name": "target_extractor"} | kwargs)
        self.model = model
        self.built = True  # as the model is

    def call(self, mixture, enrolment):
        samples, enrolled = ops.shape(mixture)[1], ops.shape(enrolment)[1]
        again = ops.arange(ops.maximum(enrolled, self.model.shortest_enrolment)) % enrolled
        embedding = self.model.embed(ops.take(enrolment, again, axis=1))
        padded = ops.pad(mixture, ((0, 0), (0, ops.maximum(self.model.windows[0] - samples, 0))))
        estimate = ops.slice(self.model.extract(padded, embedding)["short"], (0, 0), (1, samples))
        # As products of matrices, which runtimes do not sum up one by one.
        column = ops.transpose(estimate)
        level = ops.matmul(mixture, column) / ops.maximum(ops.matmul(estimate, column), 1e-9)
        return ops.expand_dims(level * estimate, 1)

    def get_config(self):
        return {"name": self.name, "model": keras.saving.serialize_keras_object(self.model)}

    @classmethod
    def from_config(cls, config):
        return cls(**config | {"model": keras.saving.deserialize_keras_object(config["model"])})


@keras.saving.register_keras_serializable("deep_casa.spex_plus")
class AtTrainingLevels(keras.Model):
    """A TargetExtractor that gets signals at the levels of its training, as nn.systems.spex_plus.recordings.Extractor
    brings them there.

    Args:
        extractor: TargetExtractor.
        levels_db: {"mixture", "enrolment": dB}.
    """

    def __init__(self, extractor, levels_db, **kwargs):
        super().__init__(**{"name": "at_training_levels"} | kwargs)
        self.extractor = extractor
        self.levels_db = dict(levels_db)
        self.built = True  # as the extractor is

    def call(self, mixture, enrolment):
        gain = self.gain("mixture", mixture)
        return self.extractor(gain * mixture, self.gain("enrolment", enrolment) * enrolment) / gain

    def gain(self, kind, signal):
        """See Extractor.gain; of a signal [1, samples], by masks where loud frames are picked there."""
        if kind not in self.levels_db:
            return 1.0
        frame, samples = self.extractor.model.windows[1], ops.shape(signal)[1]
        frames = ops.maximum(samples // frame, 1)
        filled = ops.pad(signal, ((0, 0), (0, ops.maximum(frame - samples, 0))))
        filled = ops.reshape(ops.slice(filled, (0, 0), (1, frames * frame)), (-1, frame))
        powers = ops.sum(ops.square(filled), axis=1) / ops.cast(ops.minimum(samples, frame), "float32")  # [frames]
        loud = ops.cast(powers >= 0.01 * ops.max(powers), "float32")
        level = ops.sum(loud * powers) / ops.sum(loud)
        wanted = 10 ** (self.levels_db[kind] / 20)
        return ops.where(level > 0, wanted / ops.sqrt(ops.maximum(level, 1e-20)), 1.0)

    def get_config(self):
        extractor = keras.saving.serialize_keras_object(self.extractor)
        return {"name": self.name, "extractor": extractor, "levels_db": self.levels_db}

    @classmethod
    def from_config(cls, config):
        return cls(**config | {"extractor": keras.saving.deserialize_keras_object(config["extractor"])})
