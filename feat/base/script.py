"""The entry point of every script. Scripts import it before TensorFlow."""

import errno
import gc
import signal
import sys

from absl import app, flags, logging

from feat.base.files import UserError

# Importing TensorFlow and tracing graphs make millions of objects that stay. Python's default looks for garbage among
# them after every 700, which is a tenth of the start of a training script.
gc.set_threshold(20_000, 20, 50)

# What a disk or a folder may refuse, and the user can mend.
_REFUSALS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EIO,
)


def run_script(main):
    """Runs an absl `main(argv)`. What the user can mend becomes one line and exit 1.

    That is a UserError, or a disk that refuses. Ctrl-C and SIGTERM end in one line too, with the exit code
    that a shell gives to a process that died of them.
    """

    def guarded(argv):
        signal.signal(signal.SIGTERM, _stop)
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # libraries say at INFO what nobody asked
        code = 1
        try:
            if len(argv) > 1 and not getattr(main, "takes_arguments", False):
                raise UserError(f"{argv[1]!r}: unexpected argument; flags are given as --name value")
            main(argv)
            return
        except UserError as error:
            message = f"error: {error}"
        except KeyboardInterrupt as stop:
            message = "stopped: what was finished is kept; the same command goes on from there"
            code = 128 + (stop.args[0] if stop.args else signal.SIGINT)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            message = (
                f"error: {error.filename or 'disk'}: {error.strerror};"
                " make room or mend its permissions, then run the same command again"
            )
        # Only here, when the error is forgotten, are progress bars closed that it held open.
        print(message, file=sys.stderr, flush=True)
        sys.exit(code)

    app.run(guarded)


def _stop(number, frame):
    raise KeyboardInterrupt(number)
