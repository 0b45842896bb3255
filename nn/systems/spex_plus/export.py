"""SpEx+ from mixture and enrolment to one talker, for nn/export.py."""

from models.spex_plus.network import SpexPlus
from models.spex_plus.waveforms import AtTrainingLevels, TargetExtractor
from nn.checkpoints import readers
from nn.systems.spex_plus.recordings import stored_settings
from nn.systems.system import Exported


def export(checkpoints):
    """Exported of the network, {checkpoint name: prefix}."""
    source = checkpoints["spex_plus"]
    settings, config = stored_settings(source)
    model = SpexPlus(**settings | {"parity": False})
    readers.load_for_inference(source, "spex_plus", model)
    extractor = TargetExtractor(model)
    if config.get("levels_db"):
        extractor = AtTrainingLevels(extractor, config["levels_db"])
    described = {"shortest_enrolment": model.shortest_enrolment, "causal": model.settings["causal"]}
    return Exported(extractor, extractor, config["sample_rate"], 1, described, ("mixture", "enrolment"))
