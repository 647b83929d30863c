#!/usr/bin/env python3
"""Scan the text encoders of which a commit changes weights, config or tokenizer, as pre-commit names them.

    python Utils/scan_changed.py --flags "--output .amber --images 0" FILE [FILE ...]

Exit code: main.py's, of which every one but 0 stops a commit (.pre-commit-hooks.yaml).
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

SCAN = Path(__file__).resolve().parents[1] / "main.py"
PIPELINE, SETTINGS, WEIGHTS = "model_index.json", "config.json", (".safetensors", ".sft")


def model_of(file: Path) -> Path | None:
    """What to scan for a file that has changed: the pipeline or the folder that it belongs to, or weights by themselves.

    None for settings of something that has no weights.
    """
    folder = file.parent
    for place in (folder, folder.parent):
        if (place / PIPELINE).is_file():
            return place
    if (folder / SETTINGS).is_file() and any(one.suffix in WEIGHTS for one in folder.iterdir()):
        return folder
    return file if file.suffix in WEIGHTS else None


def tracked(flags: list[str]) -> str | None:
    """The folder of results, where a commit brings it with it: reports in it would pass for those of this machine."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--output", default="")
    output = parser.parse_known_args(flags)[0].output
    if not output:
        return None
    listed = subprocess.run(["git", "ls-files", "--", output], capture_output=True, text=True)
    return output if listed.stdout else None


def main(argv: list[str] | None = None) -> int:
    """Write the list and scan it.  -> the exit code"""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="files that have changed")
    parser.add_argument("--flags", default="", metavar="FLAGS", help="flags of main.py, in one word")
    args = parser.parse_args(argv)
    try:
        flags = shlex.split(args.flags)
    except ValueError as error:
        parser.error(f"--flags {args.flags} cannot be read ({error})")
    if kept := tracked(flags):
        parser.error(f"{kept} is in the repository: a scan goes on from reports that lie there; take it out, and ignore it")
    models = dict.fromkeys(str(model) for file in args.files if (model := model_of(file.resolve())))
    if odd := next((model for model in models if set("\r\n") & set(model)), None):
        parser.error(f"{odd!r} has a name of two lines; rename it")
    if not models:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "changed.txt"
        listed.write_text("\n".join(models), encoding="utf-8", errors="surrogateescape")
        return subprocess.call([sys.executable, str(SCAN), "--models", str(listed), *flags])


if __name__ == "__main__":
    sys.exit(main())
