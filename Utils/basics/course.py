"""How far long work is, for the person who waits: a bar on a terminal, elsewhere a whole line now and then."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress

from tqdm import tqdm

from Utils.basics.errors import tell, visible

FIRST, EVERY = 15.0, 30.0
"""Seconds until the first line on work under way, and between two: a log file is to stay short."""


class Course:
    """One piece of work under way, drawn where standard error goes; drawing may never cost the work."""

    def __init__(self, name: str, total: float):
        self.name, self.total, self.done = visible(name), total, 0.0
        self.began = time.monotonic()
        self.next = self.began + FIRST
        self.bar: tqdm | None = None
        if is_terminal():
            tqdm.monitor_interval = 0  # its thread would be forked with the next child
            style = "{desc}: {percentage:3.0f}% |{bar}| {elapsed} gone, {remaining} left"
            with suppress(OSError, ValueError):  # a terminal that is gone costs the bar
                self.bar = tqdm(total=total, desc=self.name, leave=False, bar_format=style, smoothing=0)

    def reach(self, done: float) -> None:
        """So much of the total is done."""
        self.done, now = min(done, self.total), time.monotonic()
        if self.bar is not None:
            with suppress(OSError, ValueError):
                self.bar.update(self.done - self.bar.n)
        elif 0 < self.done < self.total and now >= self.next and not is_silent():
            self.next = now + EVERY
            left = (now - self.began) * (self.total - self.done) / self.done
            tell(f"{self.name}: {self.done / self.total:.0%}, about {duration(left)} left")

    def close(self) -> None:
        if self.bar is not None:
            with suppress(OSError, ValueError):
                self.bar.close()


def is_terminal() -> bool:
    """Whether somebody looks at standard error."""
    with suppress(OSError, ValueError):
        return sys.stderr is not None and sys.stderr.isatty() and not is_silent()
    return False


def is_silent() -> bool:
    """Whether nothing is to be drawn: workers of one machine would write into each other's lines."""
    return os.environ.get("TQDM_DISABLE", "") not in ("", "0")


def duration(seconds: float) -> str:
    """Seconds as a person says them: 40 s, 7 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
