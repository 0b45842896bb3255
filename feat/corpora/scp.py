"""Kaldi's lists: "key path" a line, as of WSJ0-2mix-extr; and other lists of fields parted by blanks."""

import os

from feat.base.files import UserError

ROOT_HELP = (
    "what relative paths in .scp lists are relative to; or OLD=NEW: paths that begin with the folder OLD, where the"
    " lists were made, lie below NEW; several by commas"
)


def read_scp(path, roots=()):
    """{key: path} of a list, in its order.

    Args:
      roots: where the files lie, see `located`.

    Raises:
      UserError: the list is missing, empty or malformed, or has a key twice.
    """
    table = {}
    for key, value in read_fields(path, 2):
        if key in table:
            raise UserError(f"{path}: the key {key} is there twice; remove one of them")
        table[key] = located(value, roots)
    return table


def located(path, roots=()):
    """Where a file of a list lies.

    Args:
      path: as the list has it.
      roots: folders for relative paths, and OLD=NEW for those below the folder OLD; the first that fits counts.
    """
    for root in roots:
        old, equals, new = root.partition("=")
        if equals and (path + "/").startswith(old.rstrip("/") + "/"):
            return os.path.join(new, path[len(old.rstrip("/")) :].lstrip("/"))
        if not equals and not os.path.isabs(path):
            return os.path.join(root, path)
    return path


def read_fields(path, count):
    """[fields of a line] of a text file. Raises UserError unless every line has `count`."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            rows = [(number, line.split()) for number, line in enumerate(file, start=1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no list can be read there; check the path") from error
    for number, row in rows:
        if len(row) != count:
            raise UserError(f"{path}, line {number}: {len(row)} fields, {count} are needed; mend it")
    if not rows:
        raise UserError(f"{path}: the list is empty; make it again")
    return [row for _, row in rows]
