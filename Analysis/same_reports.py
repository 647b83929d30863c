"""Does the code at hand give the same reports as an earlier commit?

    python Analysis/same_reports.py --against COMMIT            the shipped suspects, seeds 0 and 42, two scans at a time

Scans every suspect with the code of the commit, in a worktree of its own, and with the code at hand, and compares the
reports key by key.  Times, memory, versions and the commit may differ, and so may where the repository lies.  Reports of a
commit are kept under Results/same/<commit>, so that the next comparison with it scans once.  Exit code: 0 the same,
1 different.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from Utils.basics.errors import InputError, fail
from Utils.basics.files import ROOT

VARYING = ("seconds", "peak_memory_mb", "versions", "tool")
SUSPECTS = ("text_on_text", "image_on_text", "benign")


def git(*arguments: str) -> str:
    """What git says in the repository."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise InputError(
            f"git {arguments[0]} failed ({done.stderr.strip().splitlines()[-1]}); give a commit of this repository."
        )
    return done.stdout.strip()


def scan(tree: Path, suspect: str, seed: int, output: Path, again: bool) -> dict:
    """The report of one suspect by the code in `tree`, on one thread: sums depend on how many share them."""
    model = tree / "Data" / "Models" / "suspects" / suspect
    if again or not list(output.glob("*/report.json")):
        shutil.rmtree(output, ignore_errors=True)
        flags = ["--model", str(model), "--seed", str(seed), "--device", "cpu", "--output", str(output), "--quiet"]
        command, threads = [sys.executable, str(tree / "main.py"), *flags], os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=threads, capture_output=True, text=True, encoding="utf-8")
        if done.returncode == 2:
            raise InputError(f"{suspect} could not be scanned by {tree}: {done.stderr.strip()}")
    (file,) = output.glob("*/report.json")
    text = file.read_text(encoding="utf-8").replace(json.dumps(report_root(file, suspect))[1:-1], "")
    return {name: value for name, value in json.loads(text).items() if name not in VARYING}


def report_root(file: Path, suspect: str) -> str:
    """Where the repository lay when a report was made."""
    path = json.loads(file.read_text(encoding="utf-8"))["model"]["path"]
    return path.removesuffix(str(Path("Data") / "Models" / "suspects" / suspect))


def differences(old: object, new: object, where: str = "") -> Iterator[str]:
    """Every place where two reports differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            if name in old and name in new:
                yield from differences(old[name], new[name], f"{where}.{name}")
            else:
                yield f"{where}.{name} is in the {'old' if name in old else 'new'} report only"
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, f"{where}[{place}]")
    elif old != new:
        yield f"{where}: {old!r} is {new!r} now"


def compare(commit: str, suspects: list[str], seeds: list[int], jobs: int) -> int:
    """Print what differs.  -> in how many places"""
    kept = ROOT / "Results" / "same"
    count = 0
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(jobs) as pool:
        earlier = Path(place).resolve() / "tree"
        git("worktree", "add", "--detach", "--force", str(earlier), commit)
        try:
            cases = [(suspect, seed) for suspect in suspects for seed in seeds]
            old = [pool.submit(scan, earlier, *case, kept / commit / "-".join(map(str, case)), False) for case in cases]
            new = [pool.submit(scan, ROOT, *case, kept / "now" / "-".join(map(str, case)), True) for case in cases]
            for (suspect, seed), *reports in zip(cases, old, new, strict=True):
                lines = list(differences(*(report.result() for report in reports)))
                count += len(lines)
                print(f"{suspect}, seed {seed}: {'the same' if not lines else f'{len(lines)} differences'}", flush=True)
                print("".join(f"  {line}\n" for line in lines), end="")
        finally:
            git("worktree", "remove", "--force", str(earlier))
    return count


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", required=True, metavar="COMMIT", help="the commit whose reports are wanted")
    parser.add_argument("--suspects", nargs="+", choices=SUSPECTS, default=list(SUSPECTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 42])
    parser.add_argument("--jobs", type=int, default=2, help="scans at the same time, one thread each (default: 2)")
    args = parser.parse_args(argv)
    try:
        commit = git("rev-parse", "--short", f"{args.against}^{{commit}}")
        return 1 if compare(commit, args.suspects, args.seeds, args.jobs) else 0
    except InputError as error:
        return fail(str(error), "same_reports")


if __name__ == "__main__":
    sys.exit(main())
