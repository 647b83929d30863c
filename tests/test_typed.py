"""A command line in a fork of the tests' process (typed.py) is what it is in a process of its own."""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest
from test_many import QUICK
from typed import fresh, typed

VARYING = ("seconds", "peak_memory_mb")
MACHINE = re.compile(r"GFLOP/s|cores busy| MB; everything is in ")


def told(done: subprocess.CompletedProcess) -> list[str]:
    """The lines on standard error, but for those on what the machine was doing and how long it took."""
    return [line for line in done.stderr.splitlines() if not MACHINE.search(line)]


def steady(report: bytes) -> bytes:
    """A report without what no two scans have in common."""
    return json.dumps({name: value for name, value in json.loads(report).items() if name not in VARYING}).encode()


def test_a_forked_scan_is_a_fresh_one_in_report_words_files_and_exit_code(tiny_folder: Path, tmp_path: Path):
    flags = "--model", str(tiny_folder), "--anchor", str(tiny_folder), "--output", str(tmp_path / "out"), "--json", "-"
    ends = []
    for run, name in ((fresh, "fresh"), (typed, "typed")):
        done = run(*QUICK, *flags, cwd=tmp_path)
        (folder,) = (tmp_path / "out").rename(tmp_path / name).iterdir()
        assert json.loads(done.stdout) == json.loads((folder / "report.json").read_bytes())
        files = sorted(file.relative_to(folder) for file in folder.rglob("*"))
        ends.append((done.returncode, steady((folder / "report.json").read_bytes()), told(done), files))
    assert ends[0] == ends[1]
    assert ends[0][0] == 3
    assert ends[0][2]


@pytest.mark.parametrize("flags", [["--version"], ["--modle", "x"], ["--model", "no/such/place"]])
def test_other_ends_are_the_same(flags: list[str], tmp_path: Path):
    ends = [run(*flags, cwd=tmp_path) for run in (fresh, typed)]
    assert len({(done.returncode, done.stdout, done.stderr) for done in ends}) == 1


def test_what_takes_too_long_is_killed(tmp_path: Path):
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        typed("--output", str(tmp_path), "--json", "-", timeout=2)
    assert time.monotonic() - began < 10
