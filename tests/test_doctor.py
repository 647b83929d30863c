"""--doctor: a line for everything that scans need, with its cure, and an exit code that says whether scans work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from Utils.basics.files import ROOT
from Utils.report.command_line import begin
from Utils.report.doctor import MISSING, NOTE, Line, _packages, examine, is_fit


def test_here_scans_work(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert begin(lambda *_: pytest.fail("scanned"), ["--doctor", "--output", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    looked_at = [line.split()[1] for line in lines]
    assert list(dict.fromkeys(looked_at)) == [
        "python", "packages", "device", "memory", "anchors", "hub", "results", "cache",
    ]  # fmt: skip
    assert not [line for line in lines if line.startswith(MISSING)]
    said = next(line for line in lines if "requirements.txt" in line)
    assert f"`{said}`" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert any("3 of 63 known bases at hand: tiny-sd" in line for line in lines)


def test_a_package_that_is_absent_or_of_another_version_is_named_with_its_cure(tmp_path: Path):
    file = tmp_path / "requirements.txt"
    file.write_text("pytest==0.1\nnobody-has-this==1.0\n", encoding="utf-8")
    absent, other = _packages(file, MISSING)
    assert (absent.state, absent.said) == (MISSING, "nobody-has-this of requirements.txt not installed")
    assert absent.cure == f"pip install -r requirements.txt   (in {ROOT})"
    assert (ROOT / "requirements.txt").exists()
    assert (ROOT / "requirements-fleet.txt").exists()
    assert (other.state, "pytest 9" in other.said, "instead of 0.1" in other.said) == (NOTE, True, True)
    assert not is_fit([absent])
    assert is_fit([other])


def test_without_torch_it_says_so_and_exits_2(tmp_path: Path):
    (tmp_path / "torch.py").write_text("raise ImportError('no torch')\n")
    command = [sys.executable, str(ROOT / "main.py"), "--doctor"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 2
    assert "missing device      torch cannot be imported (no torch): pip install -r requirements.txt" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("package", ["psutil", "yaml"])
def test_without_what_the_command_line_needs_it_is_one_sentence(tmp_path: Path, package: str):
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError('no', name={package!r})\n")
    command = [sys.executable, str(ROOT / "main.py"), "--doctor"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"amber: {package} is not installed; type pip install -r requirements.txt beside main.py.\n"


def test_a_place_that_cannot_be_written_to_is_missing(tmp_path: Path):
    (tmp_path / "file").write_text("")
    (results,) = (line for line in examine(tmp_path / "file" / "results") if line.what == "results")
    assert (results.state, results.cure) == (MISSING, "choose another place with --output")


def test_the_terminal_gets_no_control_characters():
    assert str(Line(NOTE, "results", "a\x1b[2J")) == "note    results     a\\u001b[2J"
