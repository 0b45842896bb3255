"""What inference on a set has done, so that the same command goes on where it was killed."""

import hashlib
import json
import os

from feat.base.files import stamps, write_text
from feat.base.parallel import progress
from nn.checkpoints import readers
from nn.training import flags as training_flags

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
        options = [
            flag.serialize() for flag in training_flags.project_flags() if flag.name not in (*WATCHED_ONLY, *regardless)
        ]
        head = {"checkpoints": [readers.fingerprint(source) for source in sources], "flags": options}
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


class Done:
    """What lies whole in a folder of outputs, and what it was made of and how: separate.json in it.

    It holds {"options": {digest: options}, "recordings": {name of the outputs: entry}}, entries of the digest of the
    options and of `stamps` of inputs and outputs. As these tell whatever was written over later, by whomever, entries
    never have to be taken out.

    Args:
        folder: of the outputs.
        options: how they are made now, for JSON: checkpoints, options and voice.
    """

    def __init__(self, folder, options):
        self.folder, self.options = folder, options
        self.path = os.path.join(folder, "separate.json")
        self.digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()
        self.recordings = self._read()[1]

    def has(self, name, inputs):
        """Whether all outputs of a name are there, made with these options of `inputs`, which `stamps` gave."""
        found = self.recordings.get(name)
        if found is None or (found["options"], found["inputs"]) != (self.digest, inputs):
            return False
        outputs = found["outputs"]
        return stamps([os.path.join(self.folder, output) for output, *_ in outputs], self.folder) == outputs

    def add(self, name, inputs, outputs):
        """Notes that all outputs of a name are there, files of these paths, made of `inputs`."""
        options, recordings = self._read()  # again, as another run may have been here
        recordings[name] = {"options": self.digest, "inputs": inputs, "outputs": stamps(outputs, self.folder)}
        options[self.digest] = self.options
        used = {entry["options"] for entry in recordings.values()}
        options = {digest: value for digest, value in options.items() if digest in used}
        write_text(self.path, json.dumps({"options": options, "recordings": recordings}, indent=1) + "\n")

    def _read(self):
        """(options, recordings) of separate.json; nothing of one that is missing, damaged or of an older format."""
        try:
            with open(self.path, encoding="utf-8") as file:
                told = json.load(file)
            options, recordings = dict(told["options"]), dict(told["recordings"])
            whole = all({"options", "inputs", "outputs"} <= set(entry) for entry in recordings.values())
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        return (options, recordings) if whole else ({}, {})
