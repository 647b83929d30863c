"""A list on a fleet: whatever becomes of its workers, every encoder gets one report and none is scanned for nothing.

Contents
    flags     that contradict each other, dask that is not installed
    fleet     hostile encoders, a late worker, a killed one, one that is too small, a scheduler that is not there
    commands  --workers, a driver that is killed and goes on (3-step scans)
    cores     shares of them, and a machine that is busy already
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

import main
from Utils.basics import processes
from Utils.basics.bounded import Limits, run_bounded
from Utils.basics.errors import InputError
from Utils.basics.files import ROOT
from Utils.report import fleet
from Utils.report.contract import SCHEMA
from Utils.report.fleet import Fleet, load_dask, scan_in_fleet
from Utils.report.folder import result_folder
from Utils.report.limits import Wanted
from Utils.report.lists import plan

REQUEST = {"device": "cpu", "seed": 1}
QUICK = (
    "--prompts", "24", "--rounds", "1", "--steps", "3", "--pooled-steps", "0", "--trigger-searches", "0",
    "--landscape-points", "3", "--restarts", "2", "--landscape-planes", "1", "--device", "cpu", "--images", "0",
    "--memory", "2500",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------ what is scanned
def fake_scan(output: Path, model: str, name: str, device: str | None = None) -> dict:
    return run_bounded(behave, (str(output), model, name), Limits(400, 3 if "hang" in name else 60, 20), model)


def behave(output: str, model: str, name: str) -> dict:
    """As the name of the model says."""
    with (Path(output).parent / "begun").open("a") as file:
        file.write(f"{Path(model).name}\n")
    if "hang" in name:
        time.sleep(60)
    if "hog" in name:
        bytearray(1 << 30)
    while "gated" in name and not (Path(output).parent / "open").exists():
        time.sleep(0.05)
    with result_folder(model, Path(output), name) as folder:
        report = {"schema": SCHEMA, "verdict": "clean", "model": {"path": model}, "anchor": {"path": "base"}}
        (folder / "report.json").write_text(json.dumps(report))
    return report


@pytest.fixture
def listed(tiny_folder: Path, tmp_path: Path) -> Callable[..., list[Path]]:
    """-> encoders of these names."""
    return lambda *names: [Path(shutil.copytree(tiny_folder, tmp_path / "list" / name)) for name in names]


def begun(tmp_path: Path) -> list[str]:
    """Names of the encoders whose scan has begun so far."""
    return (tmp_path / "begun").read_text().split() if (tmp_path / "begun").exists() else []


def journal(tmp_path: Path) -> dict[str, str]:
    """Which worker has seen to which encoder."""
    entries = [json.loads(file.read_text()) for file in (tmp_path / "out" / ".summary").glob("*.json")]
    return {entry["name"].removeprefix("list_"): entry["process"] for entry in entries}


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing has happened"
        time.sleep(0.05)


# ------------------------------------------------------------------------------------------------------------ who scans
class Crew:
    """A scheduler, and workers that are processes of their own."""

    def __init__(self, address: str):
        self.address, self.workers = address, {}

    def join(self, name: str, resources: str = "") -> None:
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        self.workers[name] = subprocess.Popen(
            [
                sys.executable, "-m", "distributed.cli.dask_worker", self.address, "--name", name, "--nthreads", "1",
                "--no-nanny", "--no-dashboard", *(("--resources", resources) if resources else ()),
            ],
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def leave(self, *names: str) -> None:
        for name in names:
            worker = self.workers.pop(name)
            worker.kill()
            worker.wait()

    def scan(self, tmp_path: Path, models: list[Path], wanted: Wanted | None = None) -> list[dict]:
        tasks, out = plan(map(str, models), tmp_path / "out"), tmp_path / "out"
        return scan_in_fleet(Fleet(scheduler=self.address), tasks, partial(fake_scan, out), out, REQUEST, True, wanted)


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    load_dask()
    from distributed import LocalCluster

    with LocalCluster(n_workers=0, dashboard_address=None) as cluster:
        crew = Crew(cluster.scheduler_address)
        crew.join("a")
        yield crew
        crew.leave(*crew.workers)


# --------------------------------------------------------------------------------------------------------------- flags
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--workers", "2"], "with --models"),
        (["--scheduler", "tcp://localhost:8786"], "with --models"),
        (["--workers", "0", "--models", "list.txt"], "give 1 or more"),
        (["--workers", "2", "--scheduler", "x.json", "--models", "list.txt"], "give one of them"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags: list[str], words: str, tmp_path: Path, capsys):
    assert main.main([*flags, "--output", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1


def test_without_dask_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main.main(["--models", str(tmp_path), "--workers", "2", "--output", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "pip install -r requirements-fleet.txt" in said
    assert len(said.splitlines()) == 1


def test_two_ways_to_share_a_list_are_one_too_many(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="use one of them"):
        load_dask()


# --------------------------------------------------------------------------------------------------------------- fleet
def test_hostile_encoders_cost_themselves_only_and_nothing_is_scanned_twice(crew: Crew, listed, tmp_path: Path):
    models = listed("plain", "hog", "hang", "other")
    first = crew.scan(tmp_path, models)
    assert [report["verdict"] for report in first] == ["clean", None, None, "clean"]
    assert "--memory" in first[1]["error"]
    assert "--timeout" in first[2]["error"]
    assert sorted(begun(tmp_path)) == ["hang", "hog", "other", "plain"]
    assert crew.scan(tmp_path, models) == first
    assert len(begun(tmp_path)) == 4


def test_the_largest_come_first(crew: Crew, listed, tmp_path: Path):
    models = listed("small", "large", "middle")
    for model, more in zip(models[1:], (2 << 20, 1 << 20), strict=True):
        (model / "more.safetensors").write_bytes(b"x" * more)
    crew.scan(tmp_path, models)
    assert begun(tmp_path) == ["large", "middle", "small"]


def test_a_worker_that_joins_late_takes_its_share_and_one_that_is_killed_loses_nothing(crew: Crew, listed, tmp_path: Path):
    models, found = listed("gated", "gated_too", "x", "y"), []
    scanning = threading.Thread(target=lambda: found.extend(crew.scan(tmp_path, models)))
    scanning.start()
    until(lambda: begun(tmp_path) == ["gated"])
    crew.join("late")
    until(lambda: "gated_too" in begun(tmp_path))
    crew.leave("late")
    until(lambda: not any("gated_too" in one for one in journal(tmp_path)))
    crew.join("later")
    until(lambda: begun(tmp_path).count("gated_too") == 2)
    (tmp_path / "open").touch()
    scanning.join(60)
    assert [report["verdict"] for report in found] == ["clean"] * 4
    assert journal(tmp_path)["gated"] == "a"
    assert journal(tmp_path)["gated_too"] == "later"
    assert sorted(begun(tmp_path)) == ["gated", "gated_too", "gated_too", "x", "y"]
    crew.leave("later")


def test_announced_memory_is_used_and_what_no_worker_has_is_an_error(crew: Crew, listed, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(fleet, "PATIENCE", 0)
    crew.join("announced", "memory=3000 GPU=1")
    until(lambda: "announced" in crew_of(crew))
    models = listed("x", "y")
    assert [report["verdict"] for report in crew.scan(tmp_path, models, Wanted(memory_mb=2000))] == ["clean"] * 2
    assert set(journal(tmp_path).values()) == {"announced"}
    reports = crew.scan(tmp_path, listed("z"), Wanted(memory_mb=99_999))
    assert reports[0]["error"].endswith(
        "its scan may take 99999 MB of memory, and no worker has so much (the largest has 3000 MB); "
        "let a larger worker join, or lower the limit with --memory."
    )
    assert begun(tmp_path).count("z") == 0
    crew.leave("announced")


def crew_of(crew: Crew) -> list[str]:
    from distributed import Client

    with Client(crew.address) as client:
        return [worker["name"] for worker in client.scheduler_info()["workers"].values()]


@pytest.mark.parametrize("where", ["tcp://127.0.0.1:9", "no/such/file.json"])
def test_a_scheduler_that_is_not_there_is_one_sentence(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fleet, "CONNECT", 1)
    load_dask()
    with pytest.raises(InputError, match="scheduler"):
        scan_in_fleet(Fleet(scheduler=where), [], print, tmp_path, REQUEST, True)


# ------------------------------------------------------------------------------------------------------------ commands
def test_a_driver_that_is_killed_leaves_no_process_and_goes_on(listed, tiny_folder: Path, tmp_path: Path):
    (tmp_path / "list.txt").write_text("\n".join(map(str, listed("x", "y"))))
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "main.py"), *QUICK, "--models", str(tmp_path / "list.txt"), "--output", str(out)]
    command += ["--anchor", str(tiny_folder)]
    driver = subprocess.Popen([*command, "--workers", "1"], stderr=subprocess.DEVNULL)
    until(lambda: any((out / ".summary").glob("*.json")), 120)
    started = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    psutil.wait_procs(started, timeout=10)
    assert not [one for one in started if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    first = {file: file.stat().st_mtime_ns for file in out.glob("*/report.json")}
    assert first
    done = subprocess.run([*command, "--workers", "2", "--quiet"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 3, done.stderr
    assert done.stderr == ""
    assert all(file.stat().st_mtime_ns == when for file, when in first.items())
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["counts"] == {"inconclusive": 2}


# --------------------------------------------------------------------------------------------------------------- cores
@pytest.mark.parametrize(("wanted", "jobs", "threads"), [("8", 2, 4), ("8", 3, 2), ("2", 4, 1), ("", 1, 6), ("nonsense", 2, 3)])
def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch, wanted: str, jobs: int, threads: int):
    monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert processes.threads_for(jobs) == threads


def test_a_busy_machine_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(psutil, "cpu_percent", lambda _: 97.0)
    assert "97%" in processes.overload()
    monkeypatch.setattr(psutil, "cpu_percent", lambda _: 60.0)
    assert processes.overload() is None
