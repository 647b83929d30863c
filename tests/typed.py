"""Our command line as somebody types it, in a fork of this process: what a fresh Python imports for seconds is here already.

The child is made what a fresh process would be: its own standard streams, folder, environment, signals, warnings and random
state.  tests/test_typed.py shows that both give the same report, words and exit codes.  What a test has patched stays patched
in a fork; and what Python does with its streams after the last line of main.py is only done by a process of its own.
"""

from __future__ import annotations

import faulthandler
import io
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from multiprocessing import get_context
from pathlib import Path
from typing import IO

import numpy as np
import torch

import main
from Utils.basics.bounded import start_method

PROGRAM = Path(main.__file__).resolve()


def fresh(*arguments: str, cwd: Path = PROGRAM.parent, timeout: float = 600) -> subprocess.CompletedProcess:
    """`python main.py arguments` in a Python of its own."""
    command = [sys.executable, str(PROGRAM), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, encoding="utf-8", timeout=timeout)


def typed(*arguments: str, cwd: Path = PROGRAM.parent, timeout: float = 600) -> subprocess.CompletedProcess:
    """`python main.py arguments` in a fork; in a Python of its own where nothing can be forked.

    Raises:
        subprocess.TimeoutExpired: it took more than `timeout` seconds, and was killed.
    """
    if start_method() != "fork":
        return fresh(*arguments, cwd=cwd, timeout=timeout)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = get_context("fork").Process(target=_live, args=(arguments, cwd, out, err))
        child.start()
        try:
            child.join(timeout)
            late = child.is_alive()
        finally:  # nothing of it is left when the tests are interrupted
            child.kill()
            child.join()
        if late:
            raise subprocess.TimeoutExpired(arguments, timeout, _text(out), _text(err))
        return subprocess.CompletedProcess(arguments, child.exitcode, _text(out), _text(err))


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return io.TextIOWrapper(stream, "utf-8").read()


def _live(arguments: tuple[str, ...], cwd: Path, out: IO[bytes], err: IO[bytes]) -> None:
    """The whole life of the child.  It ends at once: what else is done at the end of a process is pytest's."""
    code = 1  # Python's, after an error that nobody caught
    try:
        _as_new(cwd, out, err)
        sys.argv = [str(PROGRAM), *arguments]
        code = main.main()
    except SystemExit as stop:  # argparse
        code = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _as_new(cwd: Path, out: IO[bytes], err: IO[bytes]) -> None:
    """Take back what pytest and earlier tests have made of this process."""
    faulthandler.disable()
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream, number in ((out, 1), (err, 2)):
        os.dup2(stream.fileno(), number)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    sys.excepthook, sys.unraisablehook = sys.__excepthook__, sys.__unraisablehook__
    threading.excepthook = threading.__excepthook__
    warnings.resetwarnings()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.showwarning = _warn  # pytest keeps them for its summary
    for logger in (logging.getLogger(), logging.getLogger("amber")):
        logger.handlers.clear()
    logging.getLogger().setLevel(logging.WARNING)
    torch.seed()  # a scan has generators of its own: what came from these would differ from run to run
    np.random.seed()
    os.chdir(cwd)


def _warn(message: Warning | str, category: type[Warning], file: str, line: int, *_: object) -> None:
    sys.stderr.write(warnings.formatwarning(message, category, file, line))
