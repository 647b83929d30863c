"""How several processes share the cores: two of one thread each do more than two that fight for both."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch


def workers(jobs: int) -> ProcessPoolExecutor:
    """A pool of `jobs` fresh processes with an equal share of the cores, or of OMP_NUM_THREADS where that is set."""
    cores = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    return ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (max(1, cores // jobs),))
