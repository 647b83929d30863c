"""Work on a stranger's files in a child process: whatever they do to memory, time or a library costs one model, not the list.

The child may use so much memory and so many seconds, and less memory and processor time while it reads files and texts
(`reading`).
What it prints goes through this process; what it answers is JSON, so that a child that was taken over has nothing to unpickle.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import math
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from Utils.basics.bounds import Limits
from Utils.basics.course import Course
from Utils.basics.errors import InputError, OutOfScope, tell, visible

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking for a GPU must not start CUDA, which no fork survives
POSIX = os.name == "posix"
TICK = 0.1
"""Seconds between two looks at a child."""
OUT_OF_MEMORY = re.compile(
    r"memory allocation of \d+ bytes failed|bad_alloc|MemoryError|[Cc]annot allocate memory|can't allocate"
)
"""How Rust, C++, Python and torch say that the limit stopped them."""
KEPT = 200
"""Last lines of a child's output that --debug shows."""
LONGEST_LINE = 300
"""Characters of what a child has told to the person at the terminal."""
LONGEST_ANSWER = 256 << 20
"""Bytes; a report has some thousands."""
TEXTS_A_SECOND = 1000
"""So many texts, tokenised once the files are read, add a second of processor time; usual tokenizers take a tenth of it."""
STARTING = threading.Lock()
"""Held while a child starts: one that another thread starts meanwhile would hold the pipes open that tell of this one's end."""
THREAD_MB = 10
"""Stacks of the threads that torch and tokenizers begin on every core, once there is work for them: taken, hardly ever used."""


class Ended(InputError):
    """The child did not survive its work: it will not survive it next time either, with these files, settings and limits."""


class _Link:
    """A child's way to its parent."""

    def __init__(self):
        self.pipe: Connection | None = None
        self.depth = 0
        self.told = 0.0
        self.reading_mb: int | None = None
        self.short = False
        """Whether the last reading ended for want of memory."""

    def tell(self, **message: Any) -> None:
        if self.pipe:
            self.pipe.send_bytes(json.dumps(message).encode())


_link = _Link()


# --------------------------------------------------------------------------------------------- what the work tells of itself
@contextmanager
def reading(texts: int = 0) -> Iterator[None]:
    """While open, a stranger's files or texts are read, and the limits of processor time and memory for that hold.

    texts: how many; each adds to the time that is allowed.
    """
    if _link.depth:
        yield
        return
    _link.depth, _link.short = 1, False
    _link.tell(reading=True, texts=texts)
    try:
        with _less_memory(_link.reading_mb):
            yield
    except BaseException as error:
        _link.short = of_memory(error)
        raise
    finally:
        _link.depth = 0
        _link.tell(reading=False)


def at_stage(name: str) -> None:
    """Say what is being done, for the sentence if it is the last thing that is said."""
    _link.tell(stage=name)


def say(line: str) -> None:
    """A line for the person at the terminal, through the parent."""
    _link.tell(said=line)


@contextmanager
def progress(name: str, total: float, shown: bool = True) -> Iterator[Callable[..., None]]:
    """How far a piece of work is, drawn by the parent where this is a child.  Yields what to call after every step.

    It takes the size of the step, in units of `total`; one where none is given.
    """
    done, began = 0.0, time.perf_counter()
    course = None if _link.pipe or not shown else Course(name, total)

    def step(size: float = 1.0) -> None:
        nonlocal done
        done += size
        if course:
            course.reach(done)
        elif shown and time.monotonic() > _link.told + TICK:
            _link.told = time.monotonic()
            _link.tell(bar=name, total=total, done=done)

    try:
        yield step
    finally:
        if course:
            course.close()
        elif shown:
            _link.tell(bar=None)
        if shown:
            logging.getLogger("amber").info("  %s: %.1f s", name, time.perf_counter() - began)


# ----------------------------------------------------------------------------------------------------------- the parent
def run_bounded(
    job: Callable[..., Any], arguments: tuple, limits: Limits, what: str, debug: bool = False, label: str = ""
) -> Any:
    """job(*arguments) in a child process.  -> what it returns, as JSON keeps it; label: of the bars and lines on its way

    Raises:
        InputError: what the job says of its input, or one sentence on what stopped it; `what` names the input.
        Ended: it was stopped by a limit, or died.
    """
    context = get_context(start_method())
    with STARTING, warnings.catch_warnings():
        # Python warns of forks beside threads: the work runs in a thread of its own there
        warnings.simplefilter("ignore", DeprecationWarning)
        ours, theirs = context.Pipe(duplex=False)
        output, says = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(theirs, says, limits, job, arguments), daemon=True)
        child.start()
        theirs.close()
        says.close()
    said: deque[str] = deque(maxlen=KEPT)
    reader = threading.Thread(target=_collect, args=(output, said), daemon=True)
    reader.start()
    watched = _Watched(child, limits, ours, label)
    try:
        answer = watched.answer()
    finally:
        _end(child)
        reader.join(5)
        for pipe in (ours, output):
            pipe.close()
        if debug:
            print("\n".join(visible(line) for line in [*said, *watched.trace]), file=sys.stderr)
    if answer is not None and "value" in answer:
        return answer["value"]
    if answer is not None and "refused" in answer:
        raise (OutOfScope if answer["code"] == OutOfScope.code else InputError)(answer["refused"])
    raise _sentence(answer, watched, "\n".join(said), limits, what)


def start_method() -> str:
    """A fork is there at once, with all that is imported; off Linux, and where CUDA runs, only a fresh process works."""
    torch = sys.modules.get("torch")  # without it nothing has started CUDA
    return "fork" if sys.platform == "linux" and not (torch and torch.cuda.is_initialized()) else "spawn"


class _Watched:
    """A child under way: what it has told, and which limit it has reached."""

    def __init__(self, child: BaseProcess, limits: Limits, pipe: Connection, label: str):
        self.child, self.limits, self.pipe, self.label = child, limits, pipe, label
        self.there = psutil.Process().memory_info().rss if start_method() == "fork" else 0  # pages of ours that it shares
        self.began = time.monotonic()
        self.stage, self.reached, self.trace = "start", "", []
        self.read, self.since = 0.0, None  # processor time of reading so far, and when the present reading began
        self.allowed = float(limits.reading_seconds)
        self.held = 0  # memory when it began
        self.course: Course | None = None
        self.named = None

    def answer(self) -> dict | None:
        """What the child answers at its end; None where it died or was stopped."""
        try:
            while True:
                ready = wait([self.pipe, self.child.sentinel], TICK)
                try:
                    while self.pipe.poll():
                        if found := self._hear(json.loads(self.pipe.recv_bytes(LONGEST_ANSWER))):
                            return found
                except (EOFError, OSError):
                    self.child.join(5)
                    return None
                if self.child.sentinel in ready or self._over():
                    return None
        finally:
            self._draw(None)

    def _hear(self, message: dict) -> dict | None:
        if "stage" in message:
            self.stage = message["stage"]
        elif "reading" in message:
            now = self._processor_time()
            if not message["reading"] and self.since is not None:
                self.read += now - self.since
            self.allowed += message.get("texts", 0) / TEXTS_A_SECOND
            self.since, self.held = (now, self._memory()) if message["reading"] else (None, 0)
        elif "bar" in message:
            self._draw(message)
        elif "said" in message:
            tell(visible(message["said"])[:LONGEST_LINE])
        else:
            self.trace = message.get("trace", [])
            return message
        return None

    def _draw(self, message: dict | None) -> None:
        name = message and message["bar"]
        if self.course and name != self.named:
            self.course.close()
            self.course = None
        self.named = name
        if name:
            where = [part for part in (self.label, self.stage, name) if part]
            self.course = self.course or Course(": ".join(dict.fromkeys(where)), message["total"])
            self.course.reach(message["done"])

    def _over(self) -> bool:
        """Whether a limit is reached; `reached` says which."""
        if time.monotonic() - self.began > self.limits.seconds:
            self.reached = "seconds"
        elif self.since is not None and self.read + self._processor_time() - self.since > self.allowed:
            self.reached = "reading"
        elif self._memory() > min(self.there + (self.limits.memory_mb << 20), self._most_in_reading()):
            self.reached = "memory"
        return bool(self.reached)

    def _most_in_reading(self) -> float:
        """Bytes that the child may hold before the present reading takes too many of them; no end where none is open."""
        bounded = self.since is not None and reading_is_bounded(self.limits.reading_mb)
        return self.held + (self.limits.reading_mb << 20) if bounded else math.inf

    def _processor_time(self) -> float:
        with suppress(psutil.Error):
            times = psutil.Process(self.child.pid).cpu_times()
            return times.user + times.system
        return 0.0

    def _memory(self) -> int:
        with suppress(psutil.Error):
            return psutil.Process(self.child.pid).memory_info().rss
        return 0


def _end(child: BaseProcess) -> None:
    """Nothing of the child outlives the call."""
    if child.is_alive() and POSIX:
        with suppress(OSError):  # it may not have come to its own group yet
            os.killpg(child.pid, signal.SIGKILL)
    if child.is_alive():
        child.kill()
    child.join()


def _collect(output: Connection, said: deque[str]) -> None:
    """Keep the last lines that a child prints; each is cut, for they may have no end."""
    rest = b""
    with suppress(OSError, EOFError):
        while POSIX and (block := os.read(output.fileno(), 1 << 16)):
            *lines, rest = re.split(rb"[\r\n]", rest + block)
            said.extend(line[:1000].decode("utf-8", "replace") for line in lines if line.strip())
            rest = rest[-1000:]
    if rest.strip():
        said.append(rest.decode("utf-8", "replace"))


def _sentence(answer: dict | None, watched: _Watched, said: str, limits: Limits, what: str) -> InputError:
    """One sentence on what stopped a child: whose files, what happened, and what to do."""
    stage, code = watched.stage, watched.child.exitcode
    bad = "its files are hostile or broken"
    if watched.reached == "seconds":
        return Ended(f"{what}: no end within {limits.seconds} s (stage {stage}); {bad}, or raise --timeout.")
    if watched.reached == "reading":
        took = f"reading its files and texts takes more than {watched.allowed:.0f} s of processor time"
        return Ended(f"{what}: {took} (stage {stage}); {bad}, or raise --load-timeout.")
    if watched.reached == "memory" or (answer or {}).get("memory") or (code and OUT_OF_MEMORY.search(said)):
        took = f"it takes more than {limits.memory_mb} MB of memory"
        if limits.reading_mb and (watched.since is not None or (answer or {}).get("short")):
            took = f"reading its files and texts takes more than {limits.reading_mb} MB of memory"
        return Ended(f"{what}: {took} (stage {stage}); {bad}, or raise --memory.")
    if answer and answer["file"]:
        return InputError(f"{what}: {answer['file']} cannot be used ({answer['why']}); see to its rights and its disk.")
    if answer:
        return InputError(
            f"{what}: the work broke off in the stage {stage}; {bad}, or this is a fault of the program: --debug shows where."
        )
    if code is not None and code < 0:
        how = f"by signal {_signal(-code)}" + (" (by hand, or the machine is out of memory)" if code == -9 else "")
    else:
        how = f"with exit code {code} and without a word"
    return Ended(f"{what}: the work ended {how} in the stage {stage}; {bad}: fetch the model again.")


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


# ------------------------------------------------------------------------------------------------------------ the child
def _child(pipe: Connection, says: Connection, limits: Limits, job: Callable[..., Any], arguments: tuple) -> None:
    """The whole life of a child.  The work has a thread of its own: a thread that was forked cannot use OpenMP's others."""
    _link.pipe, _link.depth, _link.reading_mb = pipe, 0, limits.reading_mb
    _leave_the_terminal(says)
    _limit_memory(limits.memory_mb)
    worker = threading.Thread(target=_work, args=(job, arguments), daemon=True)
    worker.start()
    while worker.is_alive():
        worker.join(1)
        if not parent_process().is_alive():
            os._exit(2)
    os._exit(0)


def _work(job: Callable[..., Any], arguments: tuple) -> None:
    try:
        answer = {"value": job(*arguments)}
    except InputError as error:
        answer = {"memory": True, "short": _link.short} if of_memory(error) else {"refused": str(error), "code": error.code}
        answer["trace"] = _trace(error)
    except BaseException as error:  # Rust panics are no Exception
        _limit_memory(None)
        answer = {
            "memory": of_memory(error), "short": _link.short,
            "file": str(getattr(error, "filename", None) or ""), "why": getattr(error, "strerror", None),
            "trace": traceback.format_exc().splitlines(),
        }  # fmt: skip
    _link.tell(**answer)


def of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised in place of, is that memory has run out."""
    while error is not None:
        if isinstance(error, MemoryError) or (not isinstance(error, InputError) and OUT_OF_MEMORY.search(str(error))):
            return True
        error = error.__context__
    return False


def _trace(error: InputError) -> list[str]:
    """Where a refusal comes from, with what a library said behind the sentence."""
    return "".join(traceback.format_exception(error.__context__ or error)).splitlines()


def _leave_the_terminal(says: Connection) -> None:
    """A session of its own, that ends with the parent, whose words all go to the parent: C++ and Rust write past Python."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if not parent_process().is_alive():
            os._exit(2)
        with suppress(OSError):  # should memory run out all the same, the system ends this process and not another
            Path("/proc/self/oom_score_adj").write_text("1000")
    if POSIX:
        import resource

        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.disable()  # it may know another way to the terminal
    where = says.fileno() if POSIX else os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(where, stream)
    sys.stdout = sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115


def _limit_memory(memory_mb: int | None) -> None:
    """Let data grow by so much and no further; None: as the system has it, to say what happened.

    The address space is not limited: CUDA and mapped weights take more of it than of memory.
    """
    if sys.platform != "linux":
        return  # elsewhere data is counted otherwise or not at all; the parent watches
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = hard
    if memory_mb is not None:
        there = int(re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10
        wanted = min(there + (memory_mb << 20), *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY), 1 << 62)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def reading_is_bounded(memory_mb: int | None) -> bool:
    """Whether reading has a limit of memory of its own; a GPU's driver takes more at its start than any reading."""
    import torch  # seconds, which a command line that is only read does not have

    return memory_mb is not None and not torch.cuda.is_available()


@contextmanager
def _less_memory(memory_mb: int | None) -> Iterator[None]:
    """While open, data may grow by so much only; afterwards the former limit holds again."""
    if not (_link.pipe and reading_is_bounded(memory_mb) and sys.platform == "linux"):
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    _limit_memory(memory_mb + THREAD_MB * (os.cpu_count() or 1))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
