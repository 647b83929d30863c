"""`--anchor auto`: the nearest known base of the same shape; one that cannot be fetched is a note, not an error."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from Utils.encoder import anchors
from Utils.encoder.loading import distance, fingerprint, load_encoder
from Utils.encoder.text_encoder import TextEncoder

ENTRIES = anchors.known_anchors()


def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: list[dict]) -> None:
    """Other known bases."""
    (tmp_path / "anchors.yaml").write_text(yaml.safe_dump(entries), encoding="utf-8")
    monkeypatch.setattr(anchors, "REGISTRY", tmp_path / "anchors.yaml")


def test_every_known_base_has_dimensions_and_a_source():
    for entry in ENTRIES:
        assert set(entry["fingerprint"]) == {"model_type", "layers", "width", "context", "vocabulary"}
        assert entry["source"]
        assert ("path" in entry) != ("hub" in entry)
        assert isinstance(entry["verified"], bool) if "hub" in entry else "verified" not in entry


def test_an_anchor_that_cannot_be_fetched_is_a_note(tiny: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    entries = [{"name": "far", "hub": "nobody/far-away", "fingerprint": fingerprint(tiny), "source": "x", "verified": False}]
    known(tmp_path, monkeypatch, entries)
    anchor, notes = anchors.pick_anchor("auto", tiny, torch.device("cpu"))
    assert anchor is None
    assert "far could not be used" in notes[0]
    assert "--anchor" in notes[1]


def test_the_nearest_of_several_that_fit_is_taken(
    tiny: TextEncoder, editable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    near = Path(shutil.copytree(editable, tmp_path / "near"))
    for folder, noise in ((editable, 1.0), (near, 0.01)):
        weights = load_file(folder / "model.safetensors")
        name = "embeddings.token_embedding.weight"
        weights[name] = weights[name] + noise * torch.randn(weights[name].shape, generator=torch.Generator().manual_seed(0))
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    entries = [{"name": f.name, "path": str(f), "fingerprint": fingerprint(tiny), "source": "x"} for f in (editable, near)]
    known(tmp_path, monkeypatch, entries)
    anchor, _ = anchors.pick_anchor("auto", tiny, torch.device("cpu"))
    assert anchor.path == str(near)
    assert distance(tiny, anchor) < distance(tiny, load_encoder(editable))
    assert distance(tiny, dataclasses.replace(tiny)) == pytest.approx(0, abs=1e-6)
