"""The list of all systems. A new system is one more name here.

This module imports no package besides Python's own, so that a fresh checkout can list its recipes.
"""

import importlib

NAMES = ("deep_casa", "spex_plus", "binaural_tasnet", "looking_to_listen", "diffsep")
SYSTEMS = [importlib.import_module(f"nn.systems.{name}").SYSTEM for name in NAMES]


def by_checkpoint():
    """{checkpoint name: System} of all networks."""
    return {checkpoint: system for system in SYSTEMS for checkpoint in system.checkpoints}
