"""Progress of long steps: a line in Dagster's log every few seconds, and calls to listeners such as progress bars."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import Logger

# label, done, total, unit
Listener = Callable[[str, float, float, str], None]

SECONDS_BETWEEN_LINES = 5.0
_listeners: list[Listener] = []


@contextmanager
def progress_listener(listener: Listener) -> Iterator[None]:
    """Call `listener` with all progress of this process while the block runs."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def track(log: Logger, label: str, unit: str) -> Callable[[float, float], None]:
    """A callback `(done, total)` for core functions that logs the rate and the remaining time."""
    started = last = time.monotonic()

    def advance(done: float, total: float) -> None:
        nonlocal last
        for listener in _listeners:
            listener(label, done, total, unit)
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and done:
            last, rate = now, done / (now - started)
            log.info(
                f"{label}: {done:,.0f} of {total:,.0f} {unit}, {rate:,.0f} {unit}/s, "
                f"{(total - done) / rate:,.0f} s left"
            )

    return advance
