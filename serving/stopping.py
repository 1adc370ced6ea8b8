"""Notices that this process is told to stop, so that answers which would go on for minutes can be ended."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable


def after_stop_signal(seconds: float, call: Callable[[], None]) -> None:
    """Call this so many seconds after SIGTERM or SIGINT, in a thread of its own. From the main thread only.

    Whoever handles the signals, now or later, is not disturbed: this listens beside the handlers.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def wait() -> None:
        while os.read(reading, 1)[0] not in (signal.SIGTERM, signal.SIGINT):
            pass
        time.sleep(seconds)
        call()

    threading.Thread(target=wait, name="stopping", daemon=True).start()
