"""--dry-run: says what a scan would do, in seconds that are near those that scans took, and does nothing of it."""

import json
from pathlib import Path

import pytest

import main
from Utils.basics.files import ROOT
from Utils.report.dry_run import RATE
from Utils.report.lists import FIXED

SUSPECTS = ROOT / "Data" / "Models" / "suspects"


def told(capsys: pytest.CaptureFixture, *flags: str) -> list[str]:
    assert main.main(["--dry-run", *flags]) == 0
    return capsys.readouterr().out.splitlines()


def test_every_encoder_has_a_line_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture):
    lines = told(capsys, "--models", str(SUSPECTS), "--output", str(tmp_path / "out"))
    assert [Path(line.split(":")[0]).name for line in lines[:3]] == ["benign", "image_on_text", "text_on_text"]
    assert "4 MB of weights, about 89 s on two cores" in lines[0]
    assert f"result in {tmp_path / 'out' / 'suspects_benign'}" in lines[0]
    assert lines[3].startswith(
        "3 encoders, about 4 min one after the other at the usual effort, against the nearest known base"
    )
    assert "tiny-sd" in lines[3]
    assert not (tmp_path / "out").exists()


def test_a_report_that_is_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "suspects_benign").mkdir()
    (tmp_path / "suspects_benign" / "report.json").write_text(
        json.dumps({"schema": "amber-report/1", "model": {"path": str(SUSPECTS / "benign")}}), encoding="utf-8"
    )
    line, whole = told(capsys, "--model", str(SUSPECTS / "benign"), "--anchor", "none", "--output", str(tmp_path))
    assert line.endswith("suspects_benign; a report is there")
    assert whole.endswith("against no base: verdicts will be inconclusive")


def test_what_cannot_be_scanned_is_refused_as_a_scan_refuses_it(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main.main(["--dry-run", "--model", "no/such/folder", "--output", str(tmp_path)]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main.main(["--dry-run", "--anchor", "no/such/base", "--output", str(tmp_path)]) == 2
    assert "does not exist" in capsys.readouterr().err
    for flags in (["--json", "-"], ["--try", "zz"]):
        assert main.main(["--dry-run", *flags]) == 2
        assert f"{flags[0]} would have nothing to tell" in capsys.readouterr().err


@pytest.mark.parametrize("shape", ["tiny", "clip-l"])
def test_the_time_is_near_what_a_benign_scan_took(shape: str):
    measured = json.loads((ROOT / "Results" / "benchmark" / "speed.json").read_text(encoding="utf-8"))["shapes"][shape]
    weights = {"tiny": 4_322_136, "clip-l": 246_142_000}[shape]
    took = measured["scans"]["benign, base cached"]["seconds"]
    assert 0.5 < (FIXED + weights) * RATE / took < 2
