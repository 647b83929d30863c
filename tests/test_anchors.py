"""`--anchor auto`: of the known bases of the suspect's dimensions that are at hand the nearest, and how sure that is.

Contents
    registry  every entry has what it needs; dimensions are those of the encoder
    choice    the nearest, in words that say how sure; what is not here is named with the command that fetches it
    commands  Utils/anchors.py: the list, and fetching from a hub (a server of the test's own)
"""

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from hub import TOKEN, Hub, cached, commit_for, serving, use_cache, use_hub
from safetensors.torch import load_file, save_file
from test_convert import PYTHON

from Utils import anchors as command
from Utils.basics.files import ROOT
from Utils.encoder import anchors
from Utils.encoder.loading import dimensions, distance, load_encoder
from Utils.encoder.text_encoder import TextEncoder
from Utils.intake.families import FAMILIES
from Utils.intake.hub import hub_name
from Utils.report.lists import inputs_digest
from Utils.sources import registry

ENTRIES = registry.known_anchors()
CPU = torch.device("cpu")
TABLE = "embeddings.token_embedding.weight"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local cache of the hub."""
    return use_cache(monkeypatch, tmp_path / "hub")


def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: list[dict]) -> None:
    """Other known bases."""
    (tmp_path / "anchors.yaml").write_text(yaml.safe_dump(entries), encoding="utf-8")
    monkeypatch.setattr(registry, "REGISTRY", tmp_path / "anchors.yaml")


def entry(encoder: TextEncoder, name: str, **where: str) -> dict:
    return {"name": name, "dimensions": dimensions(encoder), "source": "x", **where}


def moved(folder: Path, target: Path, noise: float, seed: int = 0) -> Path:
    """A copy of an encoder with another token table; noise in standard deviations of the table's entries."""
    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    table = weights[TABLE]
    weights[TABLE] = table + noise * table.std() * torch.randn(table.shape, generator=torch.Generator().manual_seed(seed))
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


# ----------------------------------------------------------------------------------------------------------- registry
def test_every_known_base_has_dimensions_a_source_and_a_place():
    for one in ENTRIES:
        assert set(one["dimensions"]) == {"model_type", "layers", "width", "positions", "vocabulary"}
        assert one["dimensions"]["model_type"] in FAMILIES
        assert one["source"]
        assert ("path" in one) != ("hub" in one)
        assert isinstance(one["verified"], bool) if "hub" in one else "verified" not in one
        assert "path" in one or hub_name(one["hub"]).id in one["hub"]
    names = [one["name"] for one in ENTRIES]
    assert len(set(names)) == len(names)
    assert {one["dimensions"]["model_type"] for one in ENTRIES} >= {
        "clip_text_model", "siglip_text_model", "siglip2_text_model", "bert", "mpnet", "t5",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["tiny-sd", "tiny-longclip", "tiny-siglip"])
def test_the_dimensions_are_those_of_the_encoder_that_is_named(name: str):
    (one,) = [one for one in ENTRIES if one["name"] == name]
    assert dimensions(load_encoder(ROOT / one["path"])) == one["dimensions"]


def test_how_long_a_tokenizer_reads_does_not_change_the_dimensions(tiny: TextEncoder, editable: Path):
    file = editable / "tokenizer_config.json"
    file.write_text(file.read_text().replace('"model_max_length": 24', '"model_max_length": 16'))
    assert dimensions(load_encoder(editable)) == dimensions(tiny)


# ------------------------------------------------------------------------------------------------------------- choice
def choice(suspect: TextEncoder) -> tuple[str | None, str]:
    """What auto takes, and its last note."""
    base, notes = anchors.pick_anchor("auto", suspect, CPU)
    return base and base.path, notes[-1]


def test_the_nearest_of_several_is_taken_and_that_is_sure(tiny: TextEncoder, tiny_folder: Path, tmp_path: Path, monkeypatch):
    folders = [moved(tiny_folder, tmp_path / f"base{n}", noise, n) for n, noise in enumerate((3.0, 0.1, 5.0))]
    known(tmp_path, monkeypatch, [entry(tiny, folder.name, path=str(folder)) for folder in folders])
    taken, note = choice(tiny)
    assert taken == str(folders[1])
    assert note.startswith("auto took base1 for the base, and is sure; its token table differs by 0.005, that of base0 by 0.6")
    assert distance(tiny, load_encoder(folders[1])) < distance(tiny, load_encoder(folders[0]))
    assert distance(tiny, dataclasses.replace(tiny)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("noises", "words"),
    [
        ((0.1, 0.11), "is not sure: base1 is about as near"), ((0.9,), "is not sure; its token table differs by 0.2"),
        ((30.0,), "found no better base than base0, and this is hardly it"), ((0.1,), "is sure; its token table differs"),
        ((0.1, 1.0), "is sure; its token table differs"),
    ],
    ids=str,
)  # fmt: skip
def test_how_sure_the_choice_is(
    tiny: TextEncoder, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noises: tuple, words: str
):
    folders = [moved(tiny_folder, tmp_path / f"base{n}", noise, n) for n, noise in enumerate(noises)]
    known(tmp_path, monkeypatch, [entry(tiny, folder.name, path=str(folder)) for folder in folders])
    assert words in choice(tiny)[1]


def test_one_base_published_twice_leaves_no_doubt(tiny: TextEncoder, tiny_folder: Path, tmp_path: Path, monkeypatch):
    first = moved(tiny_folder, tmp_path / "first", 0.1)
    second = shutil.copytree(first, tmp_path / "second")
    known(tmp_path, monkeypatch, [entry(tiny, Path(folder).name, path=str(folder)) for folder in (first, second)])
    assert "first for the base, and is sure" in choice(tiny)[1]


def test_a_base_in_the_local_cache_is_taken_and_others_are_named(
    tiny: TextEncoder, tiny_folder: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    cached(cache, "somebody/base", tiny_folder)
    entries = [entry(tiny, "near", hub="somebody/base"), entry(tiny, "away", hub="nobody/away")]
    known(tmp_path, monkeypatch, [*entries, entry(tiny, "old", hub="nobody/old@main/old.pt")])
    monkeypatch.chdir(ROOT)
    taken, note = choice(tiny)
    assert taken == "somebody/base"
    assert note.endswith(
        "2 more of its shape are known and not here: fetch them with `python Utils/anchors.py --fetch away` or "
        "`python Utils/convert.py nobody/old@main/old.pt old.safetensors`"
    )


def test_half_a_base_in_the_cache_is_not_here(tiny: TextEncoder, editable: Path, cache: Path):
    (editable / "model.safetensors").unlink()
    cached(cache, "somebody/base", editable)
    assert registry.at_hand(entry(tiny, "near", hub="somebody/base")) is None


def test_without_a_base_at_hand_the_command_fetches_it(
    tiny: TextEncoder, tiny_folder: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    known(tmp_path, monkeypatch, [entry(tiny, "far", hub="somebody/base")])
    base, notes = anchors.pick_anchor("auto", tiny, CPU)
    assert base is None
    assert "--anchor" in notes[1]
    before = inputs_digest("auto", [])
    words = shlex.split(re.search(r"fetch them with `(.*)`$", notes[0])[1])
    assert (words[0], Path(words[1]).resolve()) == ("python", Path(command.__file__).resolve())
    with serving(Hub({("somebody/base", "main"): tiny_folder})) as hub, monkeypatch.context() as patch:
        use_hub(patch, hub)
        assert command.main(words[2:]) == 0
    assert choice(tiny)[0] == "somebody/base"
    assert inputs_digest("auto", []) != before  # what was scanned without it is scanned again


def test_a_base_that_cannot_be_read_is_a_note(tiny: TextEncoder, editable: Path, tmp_path: Path, monkeypatch):
    known(tmp_path, monkeypatch, [entry(tiny, "broken", path=str(editable))])
    (editable / "config.json").write_text("{")
    assert "the known base broken could not be used" in anchors.pick_anchor("auto", tiny, CPU)[1][0]


# ----------------------------------------------------------------------------------------------------------- commands
def test_the_list_says_what_is_known_and_what_is_at_hand(
    tiny: TextEncoder, tiny_folder: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    cached(cache, "somebody/base", tiny_folder)
    entries = [entry(tiny, "near", hub="somebody/base"), entry(tiny, "away", hub="nobody/away")]
    known(tmp_path, monkeypatch, [*entries, entry(tiny, "old", hub="nobody/old@main/old.pt")])
    assert command.main(["--list"]) == 0
    head, near, away, old, last = capsys.readouterr().out.splitlines()
    assert "layers" in head
    assert re.search(r"clip_text_model +3 +32 +24 +514 ", near)
    assert near.endswith(f"in the hub's cache, somebody/base at {commit_for('somebody/base')[:12]}")
    assert away.endswith("not here")
    assert "convert.py nobody/old@main/old.pt old.safetensors" in old
    assert last.endswith("--fetch NAME")


def test_the_commands_run_as_they_are_typed(tiny_folder: Path, tmp_path: Path):
    """The shipped list, and a base of it fetched by its name from a hub that asks for the user's login."""
    (one,) = [one for one in ENTRIES if one["name"] == "clip-vit-base-patch32"]
    line = "python Utils/anchors.py --list && python Utils/anchors.py --fetch clip-vit-base-patch32"
    with serving(Hub({(one["hub"], "main"): tiny_folder}, gated={one["hub"]})) as hub:
        env = os.environ | PYTHON | hub.environment(tmp_path) | {"HF_TOKEN": TOKEN}
        done = subprocess.run(line, shell=True, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=True)
    assert len(done.stdout.splitlines()) == len(ENTRIES) + 3
    assert done.stdout.splitlines()[-1].startswith("clip-vit-base-patch32: in the hub's cache")


def test_what_cannot_be_fetched_is_told(cache: Path, capsys):
    assert command.main(["--fetch", "nowhere", "LongCLIP-B", "clip-vit-base-patch16", "tiny-sd"]) == 2
    said = capsys.readouterr()
    assert "nowhere is no known base; --list shows them" in said.err
    assert "LongCLIP-B is published as a pickle only" in said.err
    assert "openai/clip-vit-base-patch16 is no folder, not whole in the local cache" in said.err
    assert "tiny-sd: Data/Models/tiny-sd" in said.out


def test_what_the_page_says_of_being_sure_is_what_the_code_does():
    page = " ".join((ROOT / "docs" / "report.md").read_text(encoding="utf-8").split())
    assert f"differs by less than {anchors.NEAR} (" in page
    assert f"*hardly it* from {anchors.FAR} on" in page
    assert anchors.ALIKE == 2.0
