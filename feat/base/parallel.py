"""One function over many jobs, on all cores, with a progress bar."""

import collections
import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from feat.base.files import UserError

GRACE_S = 1.0  # for workers that are stopped to clear away what they had begun to write


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
      UserError: a worker process was killed, or `function` raised it; jobs that are not done are dropped.
    """
    jobs = list(jobs)
    if not jobs:
        return []
    num_workers = min(num_workers or os.cpu_count() or 1, len(jobs))
    if num_workers == 1:
        return [function(job) for job in progress(jobs, description)]
    with _pool(num_workers, description) as executor:
        chunk = max(1, min(16, len(jobs) // (4 * num_workers)))
        with _held_signals():  # workers are started here
            results = executor.map(functools.partial(_work, function), jobs, chunksize=chunk)
        return list(progress(results, description, len(jobs)))


def parallel_stream(function, jobs, num_workers=0, description=""):
    """Yields the results of `parallel_map` for jobs that are made as one goes, a few of them ahead."""
    num_workers = num_workers or os.cpu_count() or 1
    if num_workers == 1:
        yield from map(function, jobs)
        return
    with _pool(num_workers, description) as executor:
        waiting = collections.deque()
        for job in jobs:
            with _held_signals():
                waiting.append(executor.submit(_work, function, job))
            if len(waiting) > 2 * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextlib.contextmanager
def _pool(num_workers, description):
    """An executor of so many processes; what has not begun is dropped at the end, after an error what has begun too."""
    # Spawned, because a fork of a process that runs TensorFlow or other threads may hang.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_follow_parent)
    try:
        with _one_thread_per_process():
            yield executor
    except BaseException as error:
        _stop(executor)
        if isinstance(error, BrokenProcessPool):
            raise UserError(
                f"{description}: a worker process was killed, perhaps for want of memory;"
                " run the same command again, with fewer workers if need be"
            ) from error
        raise
    executor.shutdown(cancel_futures=True)


def _stop(executor):
    """Ends the workers of an executor at once, whatever they do, and what serves them in this process."""
    with _held_signals():
        workers = list((executor._processes or {}).values())
        manager, results = executor._executor_manager_thread, executor._result_queue
        executor.shutdown(wait=False, cancel_futures=True)  # first, so that nothing is made of those that end
        for worker in workers:
            worker.terminate()
        running, until = [worker.sentinel for worker in workers], time.monotonic() + GRACE_S
        while running and time.monotonic() < until:
            ended = multiprocessing.connection.wait(running, until - time.monotonic())
            running = [sentinel for sentinel in running if sentinel not in ended]
        for worker in workers:
            worker.kill()
        if manager is not None:
            results._writer.close()  # else the manager waits for the rest of a result that was cut off
            manager.join(10 * GRACE_S)


@contextlib.contextmanager
def _held_signals():
    """Ctrl-C and SIGTERM wait for the end of the block; processes that are started in it see no Ctrl-C, ever."""
    held, handlers = [], {}
    if threading.current_thread() is threading.main_thread():  # no other is interrupted
        for number in (signal.SIGINT, signal.SIGTERM):
            handlers[number] = signal.signal(number, lambda number, frame: held.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


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


def _work(function, job):
    """In a worker: function(job)."""
    try:
        return function(job)
    except SystemExit:  # by SIGTERM; the executor would go on with the next job
        os._exit(1)


def _leave(number, frame):
    signal.signal(number, signal.SIG_IGN)  # once, as half-written files are being removed
    sys.exit(1)


def _follow_parent():
    """In a worker: leaves Ctrl-C to the parent, and ends when the parent is gone, even if by SIGKILL."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent():
    multiprocessing.parent_process().join()
    os._exit(1)
