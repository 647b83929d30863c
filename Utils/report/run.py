"""What travels through one scan: its folder, notes, times and the course of the search."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from torch import Tensor

from Utils.basics.bounded import at_stage, progress, say
from Utils.basics.hardware import has_bfloat16
from Utils.basics.processes import give_back_memory
from Utils.encoder.work import WORK, matrix_rate
from Utils.report.folder import logger, result_folder

BUSY = 1.0
"""GFLOP/s from which a stage is one of products and not of files or figures."""


@dataclass
class Run:
    """One scan under way.  Without a folder nothing is kept but numbers."""

    folder: Path | None = None
    """Where the files of the result go."""
    seed: int = 0
    notes: list[str] = field(default_factory=list)
    """What a reader of the report has to know beside the verdict."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """{step, loss, term ...} of every step of the search, best start."""
    work: list[tuple[float, float]] = field(default_factory=list)
    """GFLOP and seconds of every stage."""
    step_done: Callable[[float], object] = lambda _: None
    """Moves the bar of the search, by the starts that have made a step."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done while it is open; a stage that comes again adds to its seconds."""
        began, before = time.perf_counter(), WORK.flop
        logger.info("%s ...", name)
        at_stage(name)
        yield
        give_back_memory()
        took = time.perf_counter() - began
        self.seconds[name] = round(self.seconds.get(name, 0.0) + took, 3)
        done = (WORK.flop - before) / 1e9
        self.work.append((done, took))
        logger.info("%s: %.3f s, %.1f GFLOP, %.1f GFLOP/s", name, took, done, done / max(1e-3, took))

    def log_rate(self, numbers: torch.dtype, device: torch.device, aloud: bool) -> None:
        """Log which share of what the machine can do the stages of products reached; aloud: at the terminal too.

        numbers: the format that was searched in; where the hardware does not multiply in it, what it can do in float32 counts.
        """
        busy = [one for one in self.work if one[0] > BUSY * one[1]]
        if not busy:
            return
        done, took = sum(done for done, _ in busy), sum(took for _, took in busy)
        if numbers == torch.bfloat16 and not has_bfloat16(device):
            numbers = torch.float32
        able = matrix_rate(numbers, device) / 1e9
        kind, rate = str(numbers).removeprefix("torch."), done / took
        line = f"{done / 1000:.1f} TFLOP at {rate:.0f} GFLOP/s, {rate / able:.0%} of this machine's {able:.0f} in {kind}"
        logger.info(line)
        if aloud:
            say(line)

    @contextmanager
    def searching(self, steps: int) -> Iterator[None]:
        """The stage `search`, with a bar on a terminal and its course in log.txt; steps: of all starts together."""
        with self.stage("search"), progress("search", steps, shown=self.folder is not None) as self.step_done:
            yield
        for line in self.curve[:: max(1, len(self.curve) // 50)]:
            logger.info("search %s", "  ".join(f"{name} {value:.4g}" for name, value in line.items()))

    def on_step(self, step: int, loss: Tensor, terms: dict[str, Tensor]) -> None:
        """Keep one step of the search: its best loss and that start's terms.  loss and each term (n,)"""
        best = int(loss.argmin())
        self.curve.append({"step": step, "loss": loss[best].item()} | {name: term[best].item() for name, term in terms.items()})
        self.step_done(len(loss))


@contextmanager
def open_run(model: str, output: Path, seed: int, name: str | None = None) -> Iterator[Run]:
    """A run whose folder takes its place under `output` when the block ends without an error; name as in `result_folder`."""
    with result_folder(model, output, name) as folder:
        yield Run(folder, seed)


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far."""
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):  # Windows
        return round(memory.peak_wset / 2**20, 1)
    import resource  # not there on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
