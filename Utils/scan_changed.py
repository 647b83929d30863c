#!/usr/bin/env python3
"""Scan the text encoders whose weights a commit changes, as pre-commit names them (.pre-commit-hooks.yaml).

    python Utils/scan_changed.py --flags "--output .amber --images 0" FILE.safetensors [FILE.safetensors ...]

Exit code: main.py's, of which every one but 0 stops a commit.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

SCAN = Path(__file__).resolve().parents[1] / "main.py"


def main(argv: list[str] | None = None) -> int:
    """Write the list and scan it.  -> the exit code"""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="weights that have changed")
    parser.add_argument("--flags", default="", metavar="FLAGS", help="flags of main.py, in one word")
    args = parser.parse_args(argv)
    if not args.files:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "changed.txt"
        listed.write_text("\n".join(str(file.resolve()) for file in args.files), encoding="utf-8", errors="surrogateescape")
        return subprocess.call([sys.executable, str(SCAN), "--models", str(listed), *shlex.split(args.flags)])


if __name__ == "__main__":
    sys.exit(main())
