"""What long work says on its way: bars on a terminal, lines in a log file, and how long it will still take."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from typed import typed

import main
from Utils.basics import course
from Utils.basics.bounded import Limits, at_stage, progress, run_bounded
from Utils.basics.config import load_config
from Utils.basics.course import Course, duration
from Utils.basics.files import ROOT
from Utils.encoder.loading import load_encoder
from Utils.report.run import Run
from Utils.scan.settings import SETTINGS, ScanConfig

LEFT = re.compile(r"(\d+)%, about (\d+) (s|min) left")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that courses see; the test moves it."""
    now = [100.0]
    monkeypatch.setattr(course.time, "monotonic", lambda: now[0])
    return now


def test_in_a_log_file_there_is_a_line_now_and_then_with_the_time_left(clock: list[float], capsys: pytest.CaptureFixture):
    work = Course("sweep", 200)
    for done in range(1, 201):
        clock[0] += 0.5
        work.reach(done)
    work.close()
    said = capsys.readouterr().err
    assert "\r" not in said
    lines = said.splitlines()
    assert len(lines) == 3  # after 15, 45 and 75 of 100 seconds
    for line in lines:
        share, left, unit = LEFT.search(line).groups()
        assert int(left) * (60 if unit == "min" else 1) == pytest.approx(100 * (1 - int(share) / 100), abs=1)


def test_short_work_and_silenced_work_say_nothing(clock: list[float], capsys: pytest.CaptureFixture, monkeypatch):
    def work() -> None:
        with progress("pairs", 4) as step_done:
            for _ in range(4):
                clock[0] += 3
                step_done()

    work()
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr(course, "FIRST", 0.0)
    work()
    assert not capsys.readouterr().err


def test_every_start_of_the_search_counts(capsys: pytest.CaptureFixture):
    """Rounds with few starts take less time than those with many: what is left is told in steps of starts."""
    suspect = load_encoder(ROOT / "Data" / "Models" / "tiny-sd")
    short = {"prompts": 24, "rounds": 3, "restarts": 8, "steps": 9, "pooled_steps": 5, "landscape_points": 3}
    scan = main.prepare(suspect, suspect, load_config(ScanConfig, SETTINGS, **short), 1, None)
    sizes, totals = [], []

    class Counted(Run):
        def searching(self, steps: int):
            totals.append(steps)
            self.step_done = sizes.append
            return self.stage("search")

    main.find_trigger(scan, Counted())
    assert sum(sizes) == totals[0]
    assert sizes == [8] * 2 + [4] * 2 + [2] * 5 + [8] + [4] + [2] * 3


def works() -> None:
    at_stage("trigger")
    with progress("sweep", 4) as outer:
        for _ in range(4):
            outer()
            with progress("nothing to see", 2, shown=False) as inner:
                inner()


def test_the_line_of_a_child_names_model_stage_and_part(monkeypatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(course, "FIRST", -1.0)
    monkeypatch.setattr(course, "EVERY", -1.0)
    monkeypatch.setattr("Utils.basics.bounded.TICK", -1.0)
    run_bounded(works, (), Limits(2000, 60, 60), "m", label="some\nmodel")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(", about")[0] for line in lines] == [
        f"some\\u000amodel: trigger: sweep: {share}%" for share in (25, 50, 75)
    ]


def test_on_a_terminal_a_bar_shows_what_is_gone_and_left():
    fcntl, pty, termios = map(pytest.importorskip, ("fcntl", "pty", "termios"))  # not on Windows
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    code = (
        "from Utils.basics.course import Course; import time\n"
        "one = Course('sweep', 4)\n"
        "for i in range(4): time.sleep(0.15); one.reach(i + 1)\n"
        "one.close()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=theirs, env=environment, check=True)
    os.set_blocking(ours, False)
    said = os.read(ours, 100_000).decode()
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 0
    assert re.search(r"sweep: +\d+% \|.*\| 00:00 gone, 00:00 left", said)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (5400, "90 min"), (6000, "1 h 40 min")]
)
def test_durations_are_said_as_people_say_them(seconds: float, words: str):
    assert duration(seconds) == words


@pytest.mark.parametrize("numbers", ["auto", "bfloat16"])
def test_a_scan_says_which_share_of_the_machine_it_reached(tmp_path: Path, numbers: str):
    """In every format it comes to its end, with its figures."""
    flags = ["--output", str(tmp_path), "--images", "0", "--steps", "4", "--rounds", "1", "--pooled-steps", "0"]
    flags += ["--restarts", "2", "--trigger-searches", "0", "--prompts", "60", "--landscape-points", "3"]
    flags += ["--precision", numbers]
    done = typed(*flags)
    assert done.returncode in (1, 3), done.stderr
    said = re.findall(r"[\d.]+ TFLOP at \d+ GFLOP/s, \d+% of this machine's \d+ in (?:bfloat16|float32)", done.stderr)
    assert len(said) == 1
    (log,) = tmp_path.glob("*/log.txt")
    assert (log.parent / "attention_map.png").stat().st_size > 1000
    assert said[0] in log.read_text(encoding="utf-8")
