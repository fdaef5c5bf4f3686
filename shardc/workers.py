"""Many things done in several processes at once, which end when the first one is interrupted."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def as_done(function: Callable[[T], R], items: Sequence[T], workers: int, method: str) -> Iterator[tuple[int, R]]:
    """Call a function with each item, in processes; yields numbers of items and results as they come.

    Leaving it early, as Ctrl-C does, ends the processes with what they are doing. Each has a pipe of its own, and they
    share nothing: none can leave a lock behind, or wait for one that has ended.

    Args:
        function: what to call; it, the items and the results are sent to processes, so they have to be picklable.
        items: what to call it with.
        workers: processes, as many as are of use; where that is one, it is this one.
        method: how processes start: "fork", "forkserver" or "spawn".

    Raises:
        Exception: what the function raised for some item.
        RuntimeError: a process was killed, for example for want of memory.
    """
    if min(workers, len(items)) < 2:
        yield from enumerate(map(function, items))
        return
    context, todo = get_context(method), iter(enumerate(items))
    processes: list[BaseProcess] = []
    busy: dict[Connection, int] = {}

    def ask(connection: Connection) -> None:
        for number, item in todo:
            connection.send(item)
            busy[connection] = number
            return

    if method != "fork":
        with _safe_path():
            resource_tracker.ensure_running()  # which ends what `_no_interrupts` has begun
    try:
        for _ in range(min(workers, len(items))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, function), daemon=True)  # type: ignore[attr-defined]
            with _no_interrupts(), _safe_path():
                process.start()
                processes.append(process)
            theirs.close()
            ask(ours)
        while busy:
            ready = set(wait(list(busy)))
            for connection in [each for each in busy if each in ready]:
                number = busy.pop(connection)
                succeeded, answer = connection.recv()
                if not succeeded:
                    raise answer
                ask(connection)
                yield number, answer
    except (EOFError, ConnectionError):
        raise RuntimeError("a process was killed, perhaps for want of memory") from None
    finally:
        for process in processes:
            process.kill()


@contextmanager
def _safe_path() -> Iterator[None]:
    """Interpreters that start here import nothing from the working folder, which may have modules of any name."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Ctrl-C goes to all processes of a terminal: those that start here never see it, and the first one ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, function: Callable[[T], R]) -> None:
    """What a process does: it answers for as long as there is one that asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it could not be kept from this process
    parent = parent_process()
    assert parent is not None
    with suppress(EOFError, ConnectionError):  # nobody asks any more
        while wait([connection, parent.sentinel]) and connection.poll():
            item = connection.recv()
            try:
                answer: tuple[bool, object] = (True, function(item))
            except Exception as error:
                answer = (False, error)
            connection.send(answer)
