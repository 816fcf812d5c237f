"""What every test may use."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.1


def eventually(what: str, probe: Callable[[], T], within_s: float = 30.0) -> T:
    """Return what probe returns, as soon as it raises no AssertionError, LookupError or failure.

    within_s: seconds, multiplied by ARPANET_TEST_SLOW. Raises AssertionError with the last error.
    """
    deadline = time.monotonic() + within_s * float(os.environ.get("ARPANET_TEST_SLOW") or 1)
    while True:
        try:
            return probe()
        except (AssertionError, LookupError, subprocess.CalledProcessError) as error:
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {within_s:g} s: {what}; last: {error}") from error
        threading.Event().wait(POLL_S)
