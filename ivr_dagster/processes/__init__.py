"""Processes that train together: what one machine runs (`machine`), and one of its processes (`member`).

They are started by a step (`resources.launcher`), or on other machines by `ivr join`, and know of Dagster only how the
first of them reports.
"""

import os
import signal
import threading
import time

SECONDS_BETWEEN_LOOKS = 0.5


def end_with(parent: int) -> None:
    """End this process, by SIGTERM, as soon as its parent has ended, however that was.

    A process whose parent is killed goes on otherwise, and would train on beside the next run.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()
