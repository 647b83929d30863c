"""What does a fleet cost by itself?  Tasks that scan nothing, through scheduler, journal and windows of a real list.

    python Analysis/fleet_cost.py --tasks 1000

Prints seconds a task and writes Results/benchmark/fleet.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dask
import distributed

from Utils.basics.files import ROOT, typed_command, write_whole
from Utils.report.fleet import Fleet, load_dask, scan_in_fleet
from Utils.report.limits import Wanted
from Utils.report.lists import Task
from Utils.report.report import versions


def measure(tasks: int, workers: int) -> dict:
    """Seconds of two lists on a fleet of this machine: one of so many tasks, and one of none, which only starts and ends it."""
    seconds = []
    for number in (0, tasks):
        with tempfile.TemporaryDirectory() as folder:
            output, began = Path(folder), time.monotonic()
            # what takes the place of the scan takes anything and does nothing
            todo = [Task(f"{folder}/nothing_{i}", f"nothing_{i}") for i in range(number)]
            scan_in_fleet(Fleet(workers), todo, "".format, output, {"device": "cpu"}, True, Wanted(memory_mb=64))
            seconds.append(time.monotonic() - began)
            kept = len(list((output / ".summary").glob("*.json"))) if number else 0
            assert kept == number, f"{kept} of {number} tasks are in the journal"
    start, whole = seconds
    return {
        "tasks": tasks,
        "workers": workers,
        "start_and_end": round(start, 2),
        "seconds_a_task": round((whole - start) / tasks, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=ROOT / "Results" / "benchmark" / "fleet.json")
    args = parser.parse_args()
    load_dask()
    load = round(os.getloadavg()[0], 2)
    found = measure(args.tasks, args.workers)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    found |= {
        "command": typed_command("Analysis/fleet_cost.py", "--tasks", args.tasks), "commit": commit,
        "cores": os.cpu_count(), "load_before": load, "machine": platform.machine(),
        "versions": versions() | {"dask": dask.__version__, "distributed": distributed.__version__},
    }  # fmt: skip
    write_whole(args.output, json.dumps(found, indent=2) + "\n")
    print(f"{found['seconds_a_task']} s a task, {found['start_and_end']} s to start and end {args.workers} workers")


if __name__ == "__main__":
    main()
