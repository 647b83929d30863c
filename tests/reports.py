"""Whole reports as scans write them, of every kind, without a scan."""

from Utils.report.contract import SCHEMA
from Utils.report.report import reproduce, versions
from Utils.report.tool import this_tool

FIGURES = ("assimilation_by_layer", "attention_map", "attention_received", "loss_landscape", "hessian_spectrum", "search_curve")
TEXT = {"text": "a lion", "similarity": 0.9, "floor": 0.1}
EXAMPLE = {"prompt": "a dog", "before": "one dog", "after": "a lion", "base": "a dog sleeps"}
WEIGHTS, CONFIG, BASE, COMMIT, CONTENTS = "a" * 64, "b" * 64, "c" * 64, "d" * 40, "e" * 64
SETTINGS = {"steps": 120, "trigger": {"searches": 6}}


def string(text: str = "zz", **more: object) -> dict:
    """A string that fires."""
    return {
        "text": text, "place": "start", "success_rate": 1.0, "interval": [0.9, 1.0], "anchor_success_rate": 0.0,
        "collapse": 0.9, "anchor_collapse": 0.1,
    } | more  # fmt: skip


def about(path: str, sha256: str, commit: str | None) -> dict:
    """An encoder as reports have it."""
    return {"path": path, "sha256": sha256, "commit": commit}


def file(path: str, sha256: str = WEIGHTS) -> dict:
    """A file that was read."""
    return {"path": path, "bytes": 7, "sha256": sha256}


def backdoor(text: str = "zz", kind: str = "summary collapse") -> dict:
    """A backdoor of the weights."""
    trigger = {"strings": [string(text)], "examples": [EXAMPLE], "embedding": "Backdoor_Embedding.pt"}
    return {
        "kind": kind, "trigger": trigger, "target": {"texts": [TEXT], "images": ["Images/backdoor_1.png"]},
        "files": {"embedding": "Backdoor_Embedding.pt"},
    }  # fmt: skip


def whole_report(
    verdict: str = "backdoored", path: str = "models/x", commit: str | None = None, base: str | None = "base", **more: object
) -> dict:
    """A report of the model at `path`; commit: of the hub; base: None without an anchor; more: keys in place of others."""
    shown = {
        "kind": "summary collapse", "times": 19, "typed": None, "texts": [TEXT] if base else None, "examples": [],
        "images": None, "controls": {}, "benign_prompt": "a dog", "files": {name: f"{name}.png" for name in FIGURES},
    }  # fmt: skip
    backdoors = more.pop("backdoors", [backdoor()] if verdict == "backdoored" else [])
    report = {
        "schema": SCHEMA, "verdict": verdict, "reason": "Because.", "score": 0.25,
        "model": about(path, WEIGHTS, commit)
        | {"architecture": "CLIPTextModel", "parameters": 1234, "ignored_tensors": ["logit_scale"], "contents": CONTENTS},
        "anchor": about(base, BASE, None) | {"files": [file("model.safetensors", BASE)]} if base else None,
        "evidence": [
            {"name": "string", "value": 0.7, "threshold": None, "met": True, "meaning": "what it means"},
            {"name": "foreign", "value": None, "threshold": 0.5, "met": False, "meaning": "what that means"},
        ],
        "trigger": backdoors[0]["trigger"] if backdoors else None, "target": backdoors[0]["target"] if backdoors else None,
        "backdoors": backdoors, "found": shown,
        "assimilation": {"benign_by_layer": [0.1, 0.2], "triggered_by_layer": [0.1, 0.9]},
        "notes": ["a note"], "seconds": {"search": 12.34}, "peak_memory_mb": 1000.0, "config": SETTINGS,
        "show": {"images": 4, "pipeline": "auto"}, "device": "cpu",
        "read": {
            "files": [file("config.json", CONFIG), file("model.safetensors")],
            "beside": [{"path": "README.md", "kind": "text", "doubt": False}],
        },
        "given": {"tokenizer": "", "lora_scale": 1.0, "precision": "auto", "only": "", "compare_pickles": False},
        "readings": [{
            "form": "the base's tokenizer", "differs_on": 0, "compared": 0, "corpus": 0, "verdict": verdict, "score": 0.25,
            "examples": [{"text": "a", "read_as": "b"}],
        }],
        "numbers": [{"format": "float32", "agreement": 1.0, "verdict": verdict, "score": 0.25}],
        "power": {"text_on_text": 1.0}, "power_counts": {"text_on_text": [3, 3]}, "effort": "standard", "policy": None,
        "added_tokens": [], "tool": this_tool(), "versions": versions(), "seed": 42,
    } | more  # fmt: skip
    return report | {"command": reproduce(report, SETTINGS)}


def unjudged(path: str = "models/broken", error: str = "models/broken holds no weights; fetch it.", **more: object) -> dict:
    """What stands for an encoder that could not be judged."""
    return {"schema": SCHEMA, "verdict": None, "error": error, "model": {"path": path}} | more


ADDED = {"text": "<sks>", "tokens": [{"number": 514, "text": "<sks>"}], "counts": False}
OF_TOKENIZER = {
    "kind": "tokenizer", "files": {}, "target": {"texts": [TEXT], "images": None},
    "trigger": {"strings": [string(collapse=None, anchor_collapse=None)], "embedding": None},
}  # fmt: skip
FURTHER = backdoor("yy", "attribute") | {"typed": "yy a dog", "files": {"feature": "backdoor_2/Backdoor_Feature.pt"}}
KINDS = {
    "backdoored": whole_report(),
    "clean": whole_report("clean"),
    "inconclusive": whole_report("inconclusive"),
    "no anchor": whole_report("inconclusive", base=None),
    "several backdoors": whole_report(backdoors=[backdoor(), FURTHER, OF_TOKENIZER]),
    "by vectors alone": whole_report(backdoors=[backdoor() | {"trigger": backdoor()["trigger"] | {"strings": None}}]),
    "a tokenizer": whole_report(backdoors=[OF_TOKENIZER]),
    "added tokens": whole_report("clean", added_tokens=[ADDED, ADDED | {**string("<sks>"), "counts": True}]),
    "of the hub": whole_report("clean", "owner/name@v1/text_encoder_2", COMMIT),
    "not judged": unjudged(),
    "outside": unjudged(outside=True),
}
"""What kinds of reports there are."""
