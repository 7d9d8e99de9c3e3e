"""Progress of long steps: a line in Dagster's log every few seconds, and calls to listeners such as progress bars."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import Logger
from typing import Protocol

SECONDS_BETWEEN_LINES = 5.0


class Listener(Protocol):
    """Receives all progress of this process."""

    def advance(self, label: str, done: float, total: float, unit: str) -> None:
        """Called when a long step has finished `done` of `total` units."""

    def finish_asset(self) -> None:
        """Called when an asset was materialized."""


_listeners: list[Listener] = []


@contextmanager
def progress_listener(listener: Listener) -> Iterator[None]:
    """Tell `listener` about all progress of this process while the block runs."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def advance(label: str, done: float, total: float, unit: str) -> None:
    """Tell all listeners how far a step is; for steps that write their own log."""
    for listener in _listeners:
        listener.advance(label, done, total, unit)


def finish_asset() -> None:
    """Tell all listeners that an asset was materialized."""
    for listener in _listeners:
        listener.finish_asset()


def track(log: Logger, label: str, unit: str) -> Callable[[float, float], None]:
    """A callback `(done, total)` for core functions that tells listeners, and logs the rate and the remaining time."""
    started = last = time.monotonic()

    def on_progress(done: float, total: float) -> None:
        nonlocal last
        advance(label, done, total, unit)
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and done:
            last, rate = now, done / (now - started)
            decimals = 0 if rate >= 10 else 2
            log.info(
                f"{label}: {done:,.0f} of {total:,.0f} {unit}, {rate:,.{decimals}f} {unit}/s, "
                f"{(total - done) / rate:,.0f} s left"
            )

    return on_progress
