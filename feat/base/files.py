"""Errors that a user can mend, and whole-or-nothing writes."""

import contextlib
import os
import re
import shutil
import socket
import tempfile


class UserError(Exception):
    """Something the user can mend. The message is one line: the file, what disagrees, the mend."""


def brief(error):
    """First line of an error of TensorFlow, without the names of nodes in it; of a graph's, what the operation said."""
    lines = (getattr(error, "message", "") or str(error)).splitlines() or [""]
    line = lines[0]
    if line.startswith("Graph execution error"):
        # Where the operation was made comes first, what it said behind.
        said = [line for line in lines[1:] if line and not line.startswith((" ", "\t", "Detected at"))]
        line = said[-1] if said else line
    return re.sub(r"\{\{.*?\}\} *| *\[Op:.*\]", "", line)[-200:]


@contextlib.contextmanager
def atomic_path(path):
    """Yields a temporary path beside `path`; renames it over `path` when the block succeeds.

    The temporary name ends like `path`, for writers that look at the extension. If the block
    fails, the temporary file is removed and whatever stood at `path` is untouched; an OSError
    that names no file, as that of a full disk does, gets the name `path`.
    """
    directory, name = os.path.split(os.path.abspath(path))
    os.makedirs(directory, exist_ok=True)
    handle, temporary = tempfile.mkstemp(
        prefix=f".{socket.gethostname()}-{os.getpid()}-", suffix=".tmp." + name[-64:], dir=directory
    )
    os.close(handle)
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = path
        raise


def write_text(path, text):
    """Writes `text` to `path`, whole or not at all."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)


def stamps(paths, folder=None):
    """[[path, bytes, mtime_ns]] of those of some files that are there; paths absolute, or from a folder on."""
    found = []
    for path in filter(os.path.exists, paths):
        stat = os.stat(path)
        name = os.path.relpath(path, folder) if folder else os.path.abspath(path)
        found.append([name, stat.st_size, stat.st_mtime_ns])
    return found


def unreadable(path, error):
    """Says that a file is there but cannot be opened, and why: an OSError."""
    return f"{path}: cannot be read ({error.strerror}); mend its permissions, or make it again"


def size_text(count):
    """Bytes as a person reads them."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def free_bytes(path):
    """Free bytes on the disk that holds `path`, which need not exist yet."""
    path = os.path.abspath(path)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path).free


def require_free_bytes(path, needed, what):
    """Raises UserError unless the disk of `path` has `needed` bytes free for `what`."""
    free = free_bytes(path)
    if needed > free:
        raise UserError(
            f"{path}: {what} need {size_text(needed)}, but {size_text(free)} are free; make room or choose another disk"
        )


def make_writable_directory(path):
    """Makes `path` and everything above it, and clears away what a killed process left half-written in it.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
        _remove_leftovers(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); mend its permissions or choose another folder"
        ) from error


def _remove_leftovers(directory):
    """Deletes temporary files of `atomic_path` whose process, on this machine, is gone."""
    temporary = re.compile(rf"\.{re.escape(socket.gethostname())}-(\d+)-\w+\.tmp\..*")
    for entry in os.scandir(directory):
        match = temporary.fullmatch(entry.name)
        if match and not _is_running(int(match[1])):
            with contextlib.suppress(FileNotFoundError):
                os.remove(entry.path)


def _is_running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
