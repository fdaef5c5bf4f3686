"""Watching a search for a placement: its progress, a time limit, and Ctrl-C."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from shardc.cli.console import Advance, echo, progress
from shardc.units import format_ms

if TYPE_CHECKING:
    from shardc.placers.local_search import Watch

_SHOWN_AFTER_S = 1.0
_STEPS = 100  # of the progress that is shown


class SearchWatch:
    """Ends a search at a time limit, or at Ctrl-C, and shows how far it is if it takes long.

    Attributes:
        interrupted: whether Ctrl-C was pressed.
        timed_out: whether the time limit ended the search.
    """

    def __init__(self, advance: Advance, time_limit: float | None) -> None:
        self._advance = advance
        self._start = time.monotonic()
        self._time_limit = time_limit
        self.interrupted = False
        self.timed_out = False

    def interrupt(self, signum: int, frame: FrameType | None) -> None:
        """End the search with the best plan so far; the second time, end everything.

        Raises:
            Ended: the first time.
            KeyboardInterrupt: from then on.
        """
        from shardc.placers.local_search import Ended

        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        echo("ending the search and keeping the best plan so far; Ctrl-C again to end at once", sys.stderr)
        raise Ended

    def __call__(self, done: float, step_ms: float) -> bool:
        """Note how far a search is, and say whether it may go on (see `shardc.placers.local_search.Watch`)."""
        return self._goes_on(done, step_ms, 1.0)

    def until(self, share: float) -> Watch:
        """What watches a search that has a share of the time limit, from the start on."""
        return lambda done, step_ms: self._goes_on(done, step_ms, share)

    def _goes_on(self, done: float, step_ms: float, share: float) -> bool:
        spent = time.monotonic() - self._start
        if spent > _SHOWN_AFTER_S:
            self._advance("search", min(int(done * _STEPS), _STEPS), _STEPS, format_ms(step_ms))
        over = self._time_limit is not None and spent >= share * self._time_limit
        self.timed_out = self.timed_out or over
        return not (self.interrupted or over)


@contextmanager
def searching(quiet: bool, time_limit: float | None) -> Iterator[SearchWatch]:
    """Yield what watches a search; Ctrl-C ends that instead of the process."""
    with progress(quiet) as advance:
        watch = SearchWatch(advance, time_limit)
        before = signal.signal(signal.SIGINT, watch.interrupt)
        try:
            yield watch
        finally:
            signal.signal(signal.SIGINT, before)
