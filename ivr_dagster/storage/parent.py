"""Processes that end with the one that started them, however that ends."""

import os
import signal
import threading
import time

SECONDS_BETWEEN_LOOKS = 0.5


def end_with(parent: int) -> None:
    """End this process, by SIGTERM, as soon as its parent has ended, however that was, or if it has already.

    A process whose parent is killed goes on otherwise, and would work on beside the next run.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()
