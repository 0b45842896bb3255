"""What inference on a set has done, so that the same command goes on where it was killed."""

import json
import os

from feat.files import stamps, write_text
from feat.parallel import progress
from nn import checkpoint, train

WATCHED_ONLY = ("num_workers", "log_steps", "pictures")  # flags that results do not depend on


class Journal:
    """The mixtures that are done and what was found for each, a line of JSON a mixture in FOLDER/unfinished.jsonl.

    Begun anew where a checkpoint or the flags are others; `finish` removes it.

    Args:
        folder: of the outputs.
        sources: the checkpoints.
        regardless: flags besides that nothing which is kept depends on.
    """

    def __init__(self, folder, sources, regardless=()):
        self.path = os.path.join(folder, "unfinished.jsonl")
        options = [flag.serialize() for flag in train.project_flags() if flag.name not in (*WATCHED_ONLY, *regardless)]
        head = {"checkpoints": [checkpoint.fingerprint(source) for source in sources], "flags": options}
        lines = self._read()
        self.entries = {line["name"]: line for line in lines[1:]} if lines[:1] == [head] else {}
        # Also drops a line that was cut short.
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in (head, *self.entries.values())))
        if self.entries:
            print(f"{folder}: going on, {len(self.entries)} mixtures are done", flush=True)

    def _read(self):
        lines = []
        try:
            with open(self.path, encoding="utf-8") as file:
                for line in file:
                    lines.append(json.loads(line))
        except (FileNotFoundError, ValueError):
            pass
        return lines

    def left(self, names, inputs, whole=lambda name: True, description="separate"):
        """Which mixtures are to be done: their numbers, and a progress bar over these.

        Args:
            names: of all mixtures.
            inputs: for each, the files that it is made from; one that changed since makes it to be done again.
            whole: name -> whether its outputs are there.
        """
        self.inputs = dict(zip(names, inputs, strict=True))
        left = [i for i, name in enumerate(names) if not (self._done(name) and whole(name))]
        return left, progress(left, description, len(names), initial=len(names) - len(left), unit="mixture")

    def _done(self, name):
        return name in self.entries and self.entries[name]["inputs"] == stamps(self.inputs[name])

    def found(self, name):
        """What was found for a mixture that is done."""
        return self.entries[name]["found"]

    def add(self, name, found=None):
        """Notes a mixture whose outputs are written.

        Args:
            found: what JSON can hold, and arrays, which come back as lists.
        """
        entry = {"name": name, "inputs": stamps(self.inputs[name]), "found": found}
        text = json.dumps(entry, default=lambda array: array.tolist())
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(text + "\n")
        except OSError as error:
            error.filename = self.path  # that of a full disk names no file
            raise
        self.entries[name] = json.loads(text)

    def finish(self):
        """The run is at its end."""
        os.remove(self.path)
