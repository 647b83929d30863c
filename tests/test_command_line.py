"""What a command line asks or gets wrong is answered before the libraries that take seconds are imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from Utils.basics.files import ROOT

HEAVY = ("torch", "transformers", "numpy", "matplotlib", "diffusers")


@pytest.fixture
def without_libraries(tmp_path: Path) -> dict[str, str]:
    """Surroundings in which nothing that takes seconds can be imported."""
    for name in HEAVY:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} is imported')\n")
    return os.environ | {"PYTHONPATH": str(tmp_path)}


def run(surroundings: dict[str, str], *flags: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *flags], env=surroundings, capture_output=True, text=True, encoding="utf-8"
    )
    return done.returncode, done.stdout + done.stderr


def test_help_and_version_need_no_library(without_libraries: dict[str, str]):
    code, said = run(without_libraries, "--help")
    assert code == 0
    assert "--proven-effect" not in said  # the name of a setting within another has that one's name before it
    assert "--trigger-proven-effect" in said
    assert run(without_libraries, "--version")[1].startswith("amber ")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--images", "-1"], "--images -1 is no number of pictures"),
        (["--config", "nothing.yaml"], "nothing.yaml cannot be read"),
        (["--k", "0"], "k should be at least 1"),
        (["--precision", "half"], "invalid choice: 'half'"),
    ],
)
def test_what_is_wrong_is_refused_without_a_library(without_libraries: dict[str, str], flags: list[str], words: str):
    code, said = run(without_libraries, *flags)
    assert (code, words in said) == (2, True), said


def test_a_scan_needs_them(without_libraries: dict[str, str]):
    assert "is imported" in run(without_libraries)[1]
