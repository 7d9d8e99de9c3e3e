"""Progress of long steps: every few seconds a line in Dagster's log, and bars for whoever listens (the terminal)."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import Logger

# label, done, total, unit
Listener = Callable[[str, float, float, str], None]

SECONDS_BETWEEN_LINES = 5.0
_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have `listener` called with every advance in this process, while the block runs."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def track(log: Logger, label: str, unit: str) -> Callable[[float, float], None]:
    """A callback (done, total) for core functions; it logs rate and time left every few seconds."""
    started = last = time.monotonic()

    def advance(done: float, total: float) -> None:
        nonlocal last
        for listener in _listeners:
            listener(label, done, total, unit)
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and done:
            last = now
            rate = done / (now - started)
            log.info(
                f"{label}: {done:,.0f} of {total:,.0f} {unit}, {rate:,.0f} {unit}/s, "
                f"{(total - done) / rate:,.0f} s left"
            )

    return advance
