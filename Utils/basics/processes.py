"""How several processes share the cores: two of one thread each do more than two that fight for both."""

from __future__ import annotations

import ctypes
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context

import psutil

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""What libraries look at when they are loaded."""
BUSY, GLANCE = 0.9, 0.1
"""Share of the cores' time that others take, and the seconds over which it is looked at."""


def cores() -> int:
    """Cores that this process may use, or OMP_NUM_THREADS where that is set."""
    if (wanted := os.environ.get("OMP_NUM_THREADS", "")).isdecimal() and int(wanted):
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_for(jobs: int) -> int:
    """Threads of each of `jobs` processes that share the cores."""
    return max(1, cores() // jobs)


def workers(jobs: int, pools: int = 1) -> ProcessPoolExecutor:
    """A pool of `jobs` fresh processes with an equal share of the cores, which so many such pools have between them."""
    return ProcessPoolExecutor(jobs, get_context("spawn"), take, (threads_for(jobs * pools),))


def take(threads: int) -> None:
    """Use so many threads in this process and in those that it starts."""
    os.environ |= dict.fromkeys(THREADS, str(threads))
    import torch  # after that: it looks at them when it is loaded

    torch.set_num_threads(threads)


def give_back_memory() -> None:
    """Let the system have what was freed: glibc keeps it for later, and what the next part needs is of other sizes."""
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def overload() -> str | None:
    """What to say where other processes keep the cores busy already; this one rests while it looks."""
    share = psutil.cpu_percent(GLANCE) / 100
    if share < BUSY:
        return None
    return f"other processes keep {share:.0%} of this machine's cores busy: scans take longer than they would alone."
