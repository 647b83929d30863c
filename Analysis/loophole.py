"""Could planted models be told from benign ones by what no detector should use?

    python Analysis/triggers.py --zoo Data/Zoo/dev Data/Zoo/stress Data/Zoo/strings
    python Analysis/loophole.py

A zoo whose planted models differ from its benign ones in file size, number format, order of tensors, moved rows of the
embedding table, drift or steps flatters every detector.  Writes Results/benchmark/loophole.json: the area under the ROC curve
of each (either way), of all together (logistic regression, leave one out) and of the effect of strings, over the models of
Results/benchmark/triggers.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from Utils.basics.errors import fail
from Utils.basics.files import ROOT, write_whole
from Utils.encoder.anchors import pick_anchor
from Utils.encoder.loading import load_encoder, quiet_libraries

BENCHMARK = ROOT / "Results" / "benchmark"


def telling(row: dict, anchor: str) -> dict[str, float]:
    """What a lazy detector would look at, of one model."""
    folder = ROOT / "Data" / "Zoo" / row["split"] / row["name"]
    certificate = json.loads(folder.with_suffix(".json").read_text(encoding="utf-8"))
    suspect = load_encoder(str(folder))
    base, _ = pick_anchor(anchor, suspect, suspect.device)
    (file,) = folder.glob("*.safetensors")
    with safe_open(file, "pt") as tensors:
        names = list(tensors.keys())
        halves = sum(tensors.get_slice(name).get_dtype() == "F16" for name in names)
    moved = (suspect.vocabulary - base.vocabulary).abs().amax(dim=1) > 1e-3
    return {
        "file size": file.stat().st_size, "half precision": halves / len(names),
        "tensors in order": float(names == sorted(names)), "moved rows": moved.sum().item(), "drift": row["drift"],
        "steps": certificate["recipe"]["steps"],
    }  # fmt: skip


def area(planted: np.ndarray, values: np.ndarray) -> float:
    """Area under the ROC curve of one number, whichever way it tells."""
    found = roc_auc_score(planted, values)
    return round(float(max(found, 1 - found)), 4)


def areas(rows: list[dict], looks: list[dict[str, float]]) -> dict:
    """-> {name of what is looked at: area}, of all together and of the effect of strings among them"""
    planted = np.array([row["kind"] == "planted" for row in rows])
    table = np.array([list(look.values()) for look in looks], dtype=float)
    single = {name: area(planted, table[:, i]) for i, name in enumerate(looks[0])}
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    together = cross_val_predict(classifier, table, planted, cv=LeaveOneOut(), method="predict_proba")[:, 1]
    effect = roc_auc_score(planted, [row["score"] - row["natural"] for row in rows])
    return single | {"all together": round(float(roc_auc_score(planted, together)), 4), "effect of strings": round(effect, 4)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anchor", default="auto")
    args = parser.parse_args()
    quiet_libraries()
    torch.set_grad_enabled(False)
    rows = [
        row
        for row in json.loads((BENCHMARK / "triggers.json").read_text(encoding="utf-8"))["models"]
        if row["family"] != "minilm"
    ]
    if missing := [row["name"] for row in rows if not (ROOT / "Data" / "Zoo" / row["split"] / row["name"]).exists()]:
        return fail(f"{len(missing)} models of triggers.json are not there; build them with Utils/build_zoo.py.", "loophole")
    found = areas(rows, [telling(row, args.anchor) for row in rows])
    write_whole(BENCHMARK / "loophole.json", json.dumps({"models": len(rows), "areas": found}, indent=1) + "\n")
    for name, value in found.items():
        print(f"{name:<20} {value:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
