"""A list on a fleet: its tasks on the workers of dask, processes of this machine or of a cluster.

The journal beside the results stays the only truth: every worker asks it before it begins, so that what one has finished no
other begins again.  dask only says who is next, and hands on what a lost worker had.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import current_process
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import psutil
import torch

from Utils.basics.errors import InputError, sentence_of, tell
from Utils.basics.processes import take, threads_for
from Utils.report.folder import remove_leftovers
from Utils.report.limits import Wanted, limits_of, sizes
from Utils.report.lists import Task, Told, Work, record_error, reports_of, see_to, unwritable

if TYPE_CHECKING:
    from distributed import Client, Future

WINDOW = 2000
"""Tasks that are with the scheduler at a time: it holds each in memory, and some thousands keep any fleet busy."""
FAILURES = 2
"""So many workers may be lost under a task of a cluster of this machine before it is given up."""
CONNECT, GLANCE = 30, 2.0
"""Seconds to reach a scheduler, and between two looks at its workers."""
PATIENCE, EMPTY = 60, 3600
"""Seconds that a task waits for a worker that is large enough, where others may join, and that a fleet may have no worker."""
QUIET = {
    "TQDM_DISABLE": "1", "DASK_LOGGING__DISTRIBUTED": "critical", "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning",
}  # fmt: skip
"""Environment of workers of this machine: their bars would overwrite each other, and what befalls them is in the summary."""
UNBOUNDED_MB = 1 << 40
"""More memory than any machine has."""


@dataclass(frozen=True)
class Fleet:
    """Who does the work: so many processes of this machine, or the workers of a running scheduler."""

    workers: int | None = None
    scheduler: str = ""
    """Its address, or a file that holds it."""


@dataclass
class _Sent:
    """A task that is with the scheduler."""

    task: Task
    asks: dict[str, int]
    future: Future
    homeless: float | None = None
    """Since when no worker could take it."""


def load_dask() -> None:
    """Import what fleets need, before any work.

    Raises:
        InputError: it is not installed, or this process is itself one of several that share the list.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("--workers, --scheduler and accelerate launch all share a list; use one of them.")
    try:
        import dask

        # what workers do is in the summary; a task that ends a worker is no news for the terminal either
        dask.config.set({"logging.distributed": "critical", "distributed.scheduler.allowed-failures": FAILURES})
        import distributed  # noqa: F401
    except ImportError:
        raise InputError(
            "--workers and --scheduler need dask.distributed; type pip install -r requirements-fleet.txt first."
        ) from None


def scan_in_fleet(
    fleet: Fleet,
    tasks: list[Task],
    scan: Callable[..., dict],
    output: Path,
    request: dict,
    resume: bool,
    wanted: Wanted | None = None,
) -> list[dict]:
    """`scan_many` on the workers of a fleet, the largest encoders first; `scan` and what it holds are pickled by name."""
    work, broken_off = Work(scan, output, request, resume, wanted or Wanted()), None
    with _client(fleet) as client:
        driver = _Driver(client, fleet, work, tasks)
        try:
            driver.run()
        except OSError as failure:
            broken_off = unwritable(output, failure)
    remove_leftovers(output)
    return reports_of(tasks, output, driver.left, broken_off)


@contextmanager
def _client(fleet: Fleet) -> Iterator[Client]:
    """A connection to the scheduler; a cluster of this machine begins and ends with it."""
    from distributed import Client, LocalCluster

    if fleet.workers:
        take(threads_for(fleet.workers))  # the workers inherit it
        os.environ |= QUIET
        share = {"memory": (psutil.virtual_memory().total >> 20) // fleet.workers}
        with (
            LocalCluster(
                n_workers=fleet.workers, threads_per_worker=1, memory_limit=0, dashboard_address=None, resources=share
            ) as cluster,
            Client(cluster) as client,
        ):
            yield client
        return
    is_file = "://" not in fleet.scheduler
    if is_file and not Path(fleet.scheduler).is_file():
        raise InputError(f"--scheduler {fleet.scheduler} is neither an address such as tcp://host:8786 nor a scheduler's file.")
    try:
        where = {"scheduler_file": fleet.scheduler} if is_file else {"address": fleet.scheduler}
        client = Client(**where, timeout=CONNECT)
    except (OSError, ValueError):
        raise InputError(f"no scheduler answers at {fleet.scheduler}; start it with dask scheduler.") from None
    with client:
        yield client


class _Driver:
    """Hands tasks out in windows, and sees that each comes to an end."""

    def __init__(self, client: Client, fleet: Fleet, work: Work, tasks: list[Task]):
        self.client, self.fleet, self.work = client, fleet, work
        self.waiting = deque(sorted(tasks, key=lambda task: -sizes(task.model)[0]))  # a large one that comes last is waited for
        self.number, self.told = len(tasks), Told(tasks, work.output)
        self.sent: dict[str, _Sent] = {}
        self.ended: SimpleQueue[Future] = SimpleQueue()
        self.folder = str(Path.cwd())
        self.crew: list[dict[str, float]] = []
        """What each worker announces."""
        self.looked = self.met = time.monotonic()
        """When the crew was looked at, and when there was one."""
        on_several = fleet.workers and work.request.get("device") == "auto" and torch.cuda.is_available()
        self.gpus = torch.cuda.device_count() if on_several else 0

    @property
    def left(self) -> list[Task]:
        """Tasks that have come to no end."""
        return [*self.waiting, *(one.task for one in self.sent.values())]

    def run(self) -> None:
        """Until no task is left.

        Raises:
            OSError: a worker could not write to the output.
            InputError: the fleet is of no use.
        """
        self._look()
        if not self.crew:
            tell(f"waiting for a worker; start some with dask worker, for {self.fleet.scheduler}")
        while self.waiting or self.sent:
            while self.crew and self.waiting and len(self.sent) < WINDOW:
                self._send(self.waiting.popleft())
            with suppress(Empty):
                self._end(self.ended.get(timeout=GLANCE))
            if time.monotonic() > self.looked + GLANCE:
                self._look()
                self._give_up()

    def _look(self) -> None:
        try:
            workers = self.client.scheduler_info()["workers"].values()
        except (OSError, KeyError):
            raise self._gone() from None
        self.looked = time.monotonic()
        self.crew = [worker["resources"] for worker in workers]
        if self.crew:
            self.met = self.looked
        elif self.looked > self.met + EMPTY:
            raise InputError(
                f"no worker in {EMPTY} s; start some with dask worker and type the same command again: it goes on where it was."
            )

    def _gone(self) -> InputError:
        where = self.fleet.scheduler or "of this machine"
        return InputError(f"the scheduler {where} is gone; type the same command again: it goes on where it was.")

    def _send(self, task: Task) -> None:
        most = None if self.fleet.workers else UNBOUNDED_MB  # what the driver's machine has says nothing of the workers'
        needs = {"memory": limits_of(task.model, self.work.anchor, self.work.wanted, most).memory_mb}
        if self.work.request.get("device") != "cpu":
            needs["GPU"] = 1
        announced = {name for worker in self.crew for name in worker}
        asks = {name: much for name, much in needs.items() if name in announced}
        place = self.number - len(self.waiting)  # dask takes the highest first, and by no fixed order among equals
        future = self.client.submit(
            _on_worker, task, self.work, self.folder, self.gpus, resources=asks, priority=-place, pure=False
        )
        self.sent[future.key] = _Sent(task, asks, future)
        future.add_done_callback(self.ended.put)

    def _end(self, future: Future) -> None:
        """A task that the scheduler is done with."""
        from distributed import KilledWorker

        if future.key not in self.sent:  # it was given up
            return
        task = self.sent[future.key].task
        error = future.exception() if future.status == "error" else None
        if isinstance(error, OSError):
            raise error
        if isinstance(error, InputError):
            raise error
        if isinstance(error, ImportError) or isinstance(getattr(error, "__cause__", None), ImportError):
            raise InputError("scheduler or workers cannot import this program; start both with PYTHONPATH set to its folder.")
        if future.status in ("cancelled", "lost"):
            raise self._gone()
        if isinstance(error, KilledWorker):
            lost = f"{error.allowed_failures + 1} workers were lost while they scanned it"
            self._fail(task, f"{lost}; see their logs, or lower the limit with --memory.")
        elif error:
            self._fail(task, sentence_of(error))
        else:
            self.told.about(task, future.result())
        del self.sent[future.key]

    def _give_up(self) -> None:
        """Tasks for which no worker is large enough are errors, once none that could be has come."""
        now, patience = time.monotonic(), PATIENCE if self.fleet.scheduler else 0
        for key, one in list(self.sent.items()) if self.crew else ():
            if any(all(has.get(name, 0) >= much for name, much in one.asks.items()) for has in self.crew):
                one.homeless = None
                continue
            one.homeless = one.homeless or now
            if now >= one.homeless + patience:
                del self.sent[key]
                one.future.cancel()
                self._fail(one.task, f"{self._too_much(one.asks)}; {self._cure()}")

    def _too_much(self, asks: dict[str, int]) -> str:
        said = {"memory": "{} MB of memory", "GPU": "{} GPU"}
        asked = " and ".join(said[name].format(much) for name, much in asks.items())
        most = max(has.get("memory", 0) for has in self.crew)
        return f"its scan may take {asked}, and no worker has so much (the largest has {most:.0f} MB)"

    def _cure(self) -> str:
        more = "give fewer --workers" if self.fleet.workers else "let a larger worker join"
        return f"{more}, or lower the limit with --memory."

    def _fail(self, task: Task, why: str) -> None:
        record_error(task, self.work.output, f"{task.model}: {why}")
        self.told.about(task, scanned=True)


def _on_worker(task: Task, work: Work, folder: str, gpus: int) -> bool:
    """`see_to` as a worker does it: it waits for a child process in a thread, so that its heartbeat goes on.

    folder: where the driver was started, to which names are relative; gpus: of this machine, for all its workers in turn.

    Raises:
        OSError: as `see_to`.
        InputError: the worker does not see the driver's folder.
    """
    from distributed import get_worker

    current_process().daemon = False  # as dask's nannies start workers, they may have no children
    name = get_worker().name
    try:
        os.chdir(folder)
    except OSError:
        raise InputError(
            f"the worker {name} does not see {folder}; start workers where it is to be seen, and --output."
        ) from None
    return see_to(task, work, f"cuda:{name % gpus}" if gpus else None, name)
