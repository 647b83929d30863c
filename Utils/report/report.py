"""report.json: what a scan says, in stable keys.  Page, SARIF and summaries are made from it."""

from __future__ import annotations

import json
import platform
import shlex
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
import transformers

from Utils.basics.config import flat
from Utils.basics.files import write_whole
from Utils.encoder.precision import AUTO
from Utils.encoder.text_encoder import TextEncoder
from Utils.intake.folders import full_path
from Utils.intake.hub import commit_of, pinned
from Utils.report.contract import SCHEMA, VERSION, to_json
from Utils.report.folder import logger
from Utils.report.page import write_page
from Utils.report.plots import BENIGN, FOUND
from Utils.report.run import Run, peak_memory_mb
from Utils.report.tool import this_tool
from Utils.scan.effort import effort_of
from Utils.scan.finding import Verdict
from Utils.scan.pair import Pair
from Utils.scan.strings import Strings, described, listed


def make_report(
    pair: Pair, strings: Strings, verdict: Verdict, shown: dict, by_layer: dict[str, torch.Tensor],
    further: list[dict],
) -> dict:  # fmt: skip
    """What the scan says; trigger and target are claimed only where the verdict is backdoored.

    shown: as `show_found` returns it; by_layer: whose assimilation -> (m, L); further: as `show_further` returns each.
    """
    suspect, anchor, claimed = pair.suspect, pair.anchor, verdict.verdict == "backdoored"
    fired = [described(one) for one in listed(strings)] or None
    trigger = {"strings": fired, "examples": shown["examples"], "embedding": shown["files"]["embedding"]} if claimed else None
    target = {"texts": shown["texts"], "images": shown["images"]} if claimed else None
    backdoor = {"kind": shown["kind"], "trigger": trigger, "target": target, "files": shown["files"]}
    layers = {name: values.mean(dim=0).tolist() for name, values in by_layer.items()}
    return {
        "schema": SCHEMA,
        "verdict": verdict.verdict,
        "reason": verdict.reason,
        "score": verdict.score,
        "model": _about(suspect) | {
            "architecture": type(suspect.model).__name__,
            "parameters": sum(p.numel() for p in suspect.model.parameters()), "ignored_tensors": suspect.ignored_tensors,
        },
        "anchor": _about(anchor) | {"files": anchor.files.read if anchor.files else []} if anchor else None,
        "evidence": verdict.evidence,
        "trigger": trigger,
        "target": target,
        "backdoors": [backdoor, *further] if claimed else [],
        "found": shown,
        "assimilation": {"benign_by_layer": layers[BENIGN], "triggered_by_layer": layers[FOUND]},
    }  # fmt: skip


def _about(encoder: TextEncoder) -> dict[str, str | None]:
    """Which encoder; commit: that of the hub's snapshot it was read from."""
    commit = commit_of(encoder.files.parts.root) if encoder.files else None
    return {"path": encoder.path, "sha256": encoder.sha256, "commit": commit}


def write_report(report: dict, run: Run, verdict: Verdict, settings: dict, usual: dict) -> dict:
    """Add how the report came about, and write report.json and report.html.  -> the whole report

    settings: {config, show, device, given}; usual: the config of a scan without flags.
    """
    report |= {
        "notes": verdict.notes + run.notes, "seconds": run.seconds, "peak_memory_mb": peak_memory_mb(), **settings,
        "effort": effort_of(settings["config"], usual), "tool": this_tool(), "versions": versions(), "seed": run.seed,
        "policy": None,
    }  # fmt: skip
    report["model"]["contents"] = contents_of(report["read"])
    report["command"] = reproduce(report, usual)
    logger.info("%s, score %.4f: %s", report["verdict"], report["score"], report["reason"])
    write_whole(run.folder / "report.json", to_json(report))
    write_page(report, run.folder)
    return report


def contents_of(read: dict) -> str:
    """SHA-256 of everything that was read for a model, and of the names of what a loader could take instead.

    read: as in the report.  Of files that were lent, which lie elsewhere, the names count and not the places.
    """
    files = sorted((Path(f["path"]).name if Path(f["path"]).is_absolute() else f["path"], f["sha256"]) for f in read["files"])
    beside = sorted((one["path"], one["kind"]) for one in read["beside"] if one["doubt"])
    return sha256(json.dumps([files, beside]).encode()).hexdigest()


def versions() -> dict[str, str]:
    """What the numbers of a report depend on beside the files."""
    return {
        "amber": VERSION, "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__, "numpy": np.__version__,
    }  # fmt: skip


def reproduce(report: dict, usual: dict) -> str:
    """The command line that gives a report again; `usual` are the settings of a scan without flags."""
    model, anchor = (pinned(one["path"], one.get("commit")) if one else "none" for one in (report["model"], report["anchor"]))
    show = report["show"]
    words = ["python", "main.py", "--model", model, "--anchor", anchor, "--seed", str(report["seed"])]
    words += ["--device", report["device"], "--images", str(show["images"]), "--pipeline", full_path(show["pipeline"])]
    given = report["given"]
    words += ["--tokenizer", full_path(given["tokenizer"])] if given["tokenizer"] else []
    words += ["--lora-scale", str(given["lora_scale"])] if given["lora_scale"] != 1 else []
    words += ["--only", given["only"]] if given["only"] else []
    words += ["--compare-pickles"] if given["compare_pickles"] else []
    words += ["--precision", given["precision"]] if given["precision"] != AUTO else []
    usual = flat(usual)
    for name, value in flat(report["config"]).items():
        if value != usual[name]:
            flag = name.replace("_", "-")
            words += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return shlex.join(words)
