"""One function over many jobs, on all cores, with a progress bar."""

import collections
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from feat.files import UserError


def progress(items=None, description="", total=None, **options):
    """tqdm over `items`: progress, speed and time left; drawn rarely where nobody watches, as in a log file."""
    interval = 0.2 if sys.stderr.isatty() else 20.0
    return tqdm(items, description, total, mininterval=interval, dynamic_ncols=True, **options)


def parallel_map(function, jobs, num_workers=0, description=""):
    """Results of `function` for every job, in the order of the jobs.

    Args:
      function: takes one job; must be picklable, as a function of a module is.
      jobs: a sequence of picklable jobs.
      num_workers: processes; 0 takes one for every core. With one everything runs in this process.
      description: what stands before the progress bar.

    Raises:
      UserError: a worker process was killed, or `function` raised it; jobs not yet begun are dropped.
    """
    jobs = list(jobs)
    if not jobs:
        return []
    num_workers = min(num_workers or os.cpu_count() or 1, len(jobs))
    if num_workers == 1:
        return [function(job) for job in progress(jobs, description)]
    with _pool(num_workers, description) as executor:
        chunk = max(1, min(16, len(jobs) // (4 * num_workers)))
        return list(progress(executor.map(function, jobs, chunksize=chunk), description, len(jobs)))


def parallel_stream(function, jobs, num_workers=0, description=""):
    """Yields the results of `parallel_map` for jobs that are made as one goes, a few of them ahead."""
    num_workers = num_workers or os.cpu_count() or 1
    if num_workers == 1:
        yield from map(function, jobs)
        return
    with _pool(num_workers, description) as executor:
        waiting = collections.deque()
        for job in jobs:
            waiting.append(executor.submit(function, job))
            if len(waiting) > 2 * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextlib.contextmanager
def _pool(num_workers, description):
    """An executor of so many processes; what has not begun is dropped at the end."""
    # Spawned, because a fork of a process that runs TensorFlow or other threads may hang.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_follow_parent)
    try:
        with _one_thread_per_process():
            yield executor
    except BrokenProcessPool as error:
        raise UserError(
            f"{description}: a worker process was killed, perhaps for want of memory;"
            " run the same command again, with fewer workers if need be"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _one_thread_per_process():
    """Keeps the linear algebra of processes started meanwhile to one thread each: cores are all taken."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _follow_parent():
    """In a worker: leaves Ctrl-C to the parent, and ends when the parent is gone, even if by SIGKILL."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent():
    multiprocessing.parent_process().join()
    os._exit(1)
