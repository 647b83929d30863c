"""Which public bases are known, and which of them are at hand.

    python Utils/anchors.py --list                  every base that --anchor auto can pick, with its dimensions and place
    python Utils/anchors.py --fetch NAME [NAME ...]  fetch bases from the hub, with your own login

Exit code: 0, or 2 where something could not be fetched.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from Utils.basics.errors import InputError, fail
from Utils.basics.files import typed_command
from Utils.intake.hub import commit_of, fetched, hub_name
from Utils.sources.registry import at_hand, fetching, is_pickle, known_anchors

COLUMNS = ("layers", "width", "positions", "vocabulary")


def listed() -> list[str]:
    """A line a base: name, dimensions, and where it is or how to get it."""
    widest = max(len(entry["name"]) for entry in known_anchors())
    lines = [f"{'base':{widest}}  {'text tower':18} {' '.join(f'{name:>10}' for name in COLUMNS)}  where"]
    for entry in known_anchors():
        numbers = " ".join(f"{entry['dimensions'][name] or '-':>10}" for name in COLUMNS)
        lines.append(f"{entry['name']:{widest}}  {entry['dimensions']['model_type']:18} {numbers}  {place_of(entry)}")
    return [*lines, f"fetch one that is not here: {typed_command('Utils/anchors.py', '--fetch', 'NAME')}"]


def place_of(entry: dict) -> str:
    """Where a base is, or how to get it."""
    place = at_hand(entry)
    if place is None:
        return f"a pickle; {fetching([entry])}" if is_pickle(entry) else "not here"
    commit = commit_of(place)
    return f"in the hub's cache, {entry['hub']} at {commit[:12]}" if commit else entry["path"]


def fetch(names: list[str]) -> int:
    """Fetch bases by their names.  -> the exit code"""
    known, code = {entry["name"]: entry for entry in known_anchors()}, 0
    for name in names:
        entry = known.get(name)
        if entry is None:
            code = fail(f"{name} is no known base; --list shows them all.")
        elif is_pickle(entry):
            code = fail(f"{name} is published as a pickle only; convert it: {fetching([entry])}, then name it with --anchor.")
        elif "path" in entry:
            print(f"{name}: {place_of(entry)}")
        else:
            try:
                fetched(hub_name(entry["hub"]))
                print(f"{name}: {place_of(entry)}", flush=True)
            except InputError as error:
                code = fail(str(error))
    return code


def main(argv: list[str] | None = None) -> int:
    """List or fetch as the command line says.  -> the exit code"""
    parser = argparse.ArgumentParser(description="Which public bases --anchor auto knows, and which of them are at hand.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="every known base, its dimensions, and where it is")
    what.add_argument("--fetch", nargs="+", metavar="NAME", help="fetch bases into the hub's local cache, by their names")
    args = parser.parse_args(argv)
    if args.fetch:
        return fetch(args.fetch)
    print("\n".join(listed()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
