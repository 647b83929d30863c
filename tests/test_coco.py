"""Benign fine-tuning on COCO's format: the reader, the composed set, the script and its certificates.

Contents
    compose_coco   the reader of COCO reads it; new concepts and looks; none of the defender's prompts; made once
    scenes         looks that came later leave older draws as they were
    read_coco      captions by picture; what it refuses
    script         a fine-tune gains a skill and keeps the old one; resumes, skips, refuses before any training
"""

import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from Utils import finetuning_on_coco30k as script
from Utils.basics.config import load_config
from Utils.basics.errors import InputError
from Utils.build_testbed import load_tokenizer, stream, token_count
from Utils.encoder.loading import load_encoder
from Utils.making import coco, scenes
from Utils.making.coco import ComposedSet, compose_coco, read_coco
from Utils.making.finetuning import load_pair, load_processor
from Utils.making.testbed import TinyModels

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = scenes.defender_prompts()
MIXED = ComposedSet(
    24, seed=5, names=(*scenes.concepts("novel"), "dog", "cat"), styles=scenes.NOVEL_STYLES, style_share=0.5, captions_each=3
)


# ------------------------------------------------------------------------------------------------------- compose_coco
@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return compose_coco(tmp_path_factory.mktemp("coco") / "mixed", MIXED, FORBIDDEN)


def test_the_composed_set_is_in_coco_s_format(composed: tuple[Path, Path]):
    captions, pictures = composed
    read = COCO(str(captions))
    assert set(read.dataset) == {"info", "licenses", "images", "annotations"}
    assert len(read.imgs) == 24
    assert len(read.anns) == 72
    licences = {entry["id"] for entry in read.dataset["licenses"]}
    for number, image in read.imgs.items():
        with Image.open(pictures / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
        assert image["license"] in licences
        assert len(read.getAnnIds(imgIds=[number])) == 3


def test_the_composed_set_holds_new_concepts_and_looks_and_none_of_the_defender_s_prompts(composed: tuple[Path, Path]):
    texts = [text for entry in read_coco(*composed) for text in entry.captions]
    assert len(set(texts)) == len(texts)
    assert not FORBIDDEN & set(texts)
    assert sum(any(name in text for name in scenes.concepts("novel")) for text in texts) > len(texts) / 2
    looks = {style for style in scenes.NOVEL_STYLES for word in scenes.grammar()["styles"][style] if word in " ".join(texts)}
    assert looks == set(scenes.NOVEL_STYLES)


def test_the_defender_s_prompts_are_drawn_again(tmp_path: Path, composed: tuple[Path, Path]):
    text = read_coco(*composed)[0].captions[0]
    again = read_coco(*compose_coco(tmp_path / "again", MIXED, FORBIDDEN | {text}))
    assert text not in [t for entry in again for t in entry.captions]


def test_the_default_sets_hold_none_of_the_defender_s_prompts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(script, "COMPOSED", tmp_path)
    cfg = script.RunConfig(composed=60, held_out=20)
    for files in (script.composed_data(cfg, FORBIDDEN), script.reference_data(cfg, FORBIDDEN)):
        assert not FORBIDDEN & {text for entry in read_coco(*files) for text in entry.captions}


def test_a_set_is_made_once_and_anew_when_another_one_is_wanted(tmp_path: Path):
    wanted = ComposedSet(3, seed=1, names=("dog", "cat", "owl"), captions_each=1)
    captions, pictures = compose_coco(tmp_path / "set", wanted, set())
    first, time = captions.read_bytes(), captions.stat().st_mtime_ns
    compose_coco(tmp_path / "set", wanted, set())
    assert captions.stat().st_mtime_ns == time
    shutil.rmtree(tmp_path / "set")
    compose_coco(tmp_path / "set", wanted, set())
    assert captions.read_bytes() == first
    compose_coco(tmp_path / "set", ComposedSet(2, seed=1, names=wanted.names), set())
    assert len(list(pictures.iterdir())) == 2


def test_captions_fit_the_context():
    """What the longest one loses is its last filler sentence, so a few may be cut."""
    count, rng = token_count(load_tokenizer()), np.random.default_rng(0)
    names = (*scenes.concepts("novel"), *scenes.concepts())
    data = scenes.captions(rng, length=lambda text: len(text.split()), limit=MIXED.words, names=names)
    assert np.mean([count(text) > 77 for _, text in islice(data, 300)]) < 0.1


# ------------------------------------------------------------------------------------------------------------- scenes
def test_looks_that_came_later_leave_the_defender_s_corpus_as_it_was():
    cfg = load_config(TinyModels, ROOT / "configs" / "testbed.yaml")
    details = (0.05, 0.15, 0.15, 0.15, 0.15, 0.15, 0.1, 0.1)  # as build_corpus
    drawn = scenes.captions(stream(cfg, "corpus"), details=details, length=token_count(load_tokenizer()), limit=70)
    prompts = scenes.PROMPTS.read_text(encoding="utf-8").splitlines()[:50]
    assert set(prompts) <= {text for _, text in islice(drawn, 80)}


@pytest.mark.parametrize("style", scenes.NOVEL_STYLES)
def test_a_novel_look_differs_from_the_photo(style: str):
    scene = scenes.portrait("unicorn")
    looked = scenes.compose(scenes.Scene(scene.things, scene.background, scene.layout, style))
    assert looked.shape == (scenes.SIDE, scenes.SIDE, 3)
    assert np.abs(looked.astype(float) - scenes.compose(scene)).mean() > 3


# ---------------------------------------------------------------------------------------------------------- read_coco
def minimal(folder: Path) -> dict:
    """Two pictures with files, three captions."""
    (folder / "pictures").mkdir()
    for number in (7, 9):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(folder / "pictures" / f"{number}.jpg")
    return {
        "images": [{"id": number, "file_name": f"{number}.jpg"} for number in (9, 7)],
        "annotations": [
            {"id": 1, "image_id": 7, "caption": "a dog\n"},
            {"id": 2, "image_id": 9, "caption": "a cat"},
            {"id": 3, "image_id": 7, "caption": " a small dog"},
        ],
    }


def written(folder: Path, data: dict) -> tuple[Path, Path]:
    (folder / "captions.json").write_text(json.dumps(data), encoding="utf-8")
    return folder / "captions.json", folder / "pictures"


def test_captions_are_found_by_their_picture(tmp_path: Path, capsys: pytest.CaptureFixture):
    found = read_coco(*written(tmp_path, minimal(tmp_path)))
    assert [(entry.file.name, entry.captions) for entry in found] == [
        ("9.jpg", ("a cat",)),
        ("7.jpg", ("a dog", "a small dog")),
    ]
    assert capsys.readouterr().out == ""


def test_pictures_without_a_caption_are_left_out(tmp_path: Path):
    data = minimal(tmp_path)
    data["annotations"][1]["caption"] = " "
    assert [entry.file.name for entry in read_coco(*written(tmp_path, data))] == ["7.jpg"]


BROKEN: dict[str, tuple[Callable[[dict], object], str]] = {
    "picture without a file": (lambda d: d["images"].append({"id": 3, "file_name": "3.jpg"}), "1 of 3 pictures are not in"),
    "caption for no image": (lambda d: d["annotations"][0].update(image_id=8), "caption 1 belongs to image 8"),
    "caption without image": (lambda d: d["annotations"][0].pop("image_id"), "caption 1 belongs to image None"),
    "image without a name": (lambda d: d["images"][0].pop("file_name"), "without id and file_name"),
    "image id twice": (lambda d: d["images"][0].update(id=7), "stand for several images"),
    "annotation id twice": (lambda d: d["annotations"][0].update(id=2), "share one id"),
    "path out of the folder": (lambda d: d["images"][0].update(file_name="../x.jpg"), "outside the picture folder"),
    "absolute path": (lambda d: d["images"][0].update(file_name="/x.jpg"), "outside the picture folder"),
    "instances": (lambda d: d["annotations"][0].pop("caption"), "without id and caption"),
    "no images": (lambda d: d.pop("images"), "no lists named"),
    "images no list": (lambda d: d.update(images={}), "no lists named"),
    "empty": (lambda d: d.update(images=[], annotations=[]), "holds no caption"),
    "no captions": (lambda d: d.update(annotations=[]), "holds no caption"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_captions_file_is_refused(tmp_path: Path, name: str):
    data, (damage, words) = minimal(tmp_path), BROKEN[name]
    damage(data)
    with pytest.raises(InputError, match=words):
        read_coco(*written(tmp_path, data))


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b'{"images": [', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_coco_json_is_refused(tmp_path: Path, content: bytes):
    captions, pictures = written(tmp_path, minimal(tmp_path))
    captions.write_bytes(content)
    with pytest.raises(InputError, match=r"JSON|no lists named"):
        read_coco(captions, pictures)


def test_missing_files_and_folders_are_refused(tmp_path: Path):
    captions, pictures = written(tmp_path, minimal(tmp_path))
    with pytest.raises(InputError, match="cannot be read"):
        read_coco(tmp_path / "none.json", pictures)
    with pytest.raises(InputError, match="is no folder"):
        read_coco(captions, tmp_path / "none")


# ------------------------------------------------------------------------------------------------------------- script
@pytest.fixture(scope="module", autouse=True)
def _composed_elsewhere(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "COMPOSED", tmp_path_factory.mktemp("composed"))
        yield


@pytest.fixture(scope="module")
def gained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A shipped recipe, large enough to learn something, and its command line."""
    folder = tmp_path_factory.mktemp("gained")
    config = ROOT / "configs" / "finetuning" / "lora.yaml"
    command = ["--config", str(config), "--output", str(folder / "model"), "--device", "cpu"]
    assert script.main(command) == 0
    return folder / "model", command


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """The command line of a run of four steps."""
    config = tmp_path / "small.yaml"
    config.write_text(
        "{lr: 1.0e-4, batch: 8, steps: 4, snapshots: [2], held_out: 16, composed: 32, checkpoint_every: 1}", encoding="utf-8"
    )
    return ["--config", str(config), "--output", str(tmp_path / "model"), "--device", "cpu"]


def certificate(folder: Path) -> dict:
    return json.loads(folder.with_name(folder.name + ".json").read_text(encoding="utf-8"))


def test_a_benign_fine_tune_gains_a_skill_and_keeps_the_old_one(gained: tuple[Path, list[str]]):
    report = certificate(gained[0])
    own, known = report["retrieval_own_data"], report["retrieval_base_data"]
    assert own["after"] >= own["before"] + 0.05
    assert known["after"] >= known["before"] - 0.03
    assert report["meets_bars"]
    assert 0.01 < report["drift"] < 0.3
    assert not list(gained[0].parent.glob("*.checkpoint*")) + list(gained[0].parent.glob("*.part"))


def test_the_certificate_is_re_measured_from_the_files(gained: tuple[Path, list[str]]):
    report = certificate(gained[0])
    cfg = script.RunConfig(**report["recipe"] | {"snapshots": ()})
    folder = ROOT / "Data" / "Models" / "tiny-clip"
    base, pair = load_encoder(folder), load_pair(folder)
    processor = load_processor(folder)
    data = read_coco(*script.composed_data(cfg, FORBIDDEN))
    held_out = [data[i] for i in np.random.default_rng(0).permutation(len(data))[: cfg.held_out]]
    sets = (script.embed(pair, processor, some, "") for some in (held_out, read_coco(*script.reference_data(cfg, FORBIDDEN))))
    found = script.certificate(load_encoder(gained[0]), base, pair, *sets, cfg)
    assert found == {name: report[name] for name in found}
    assert load_encoder(gained[0]).sha256 == report["sha256"]


def test_a_finished_run_is_skipped_and_never_replaced_by_another(gained: tuple[Path, list[str]], capsys, monkeypatch):
    folder, command = gained
    before = (folder / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(script, "finetune", lambda *_, **__: pytest.fail("trained"))
    assert script.main(command) == 0
    assert "finished" in capsys.readouterr().out
    assert script.main([*command, "--seed", "1"]) == 2
    assert "--force" in capsys.readouterr().err
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_an_interrupted_script_goes_on_to_the_same_files(small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, whole = tmp_path / "model", tmp_path / "whole"
    assert script.main([*small[:3], str(whole), *small[4:]]) == 0
    real, asked = script.batches, []

    def breaking(*arguments: object) -> Callable:
        batch = real(*arguments)

        def asking(step: int):
            asked.append(step)
            if len(asked) == 4:
                raise KeyboardInterrupt
            return batch(step)

        return asking

    monkeypatch.setattr(script, "batches", breaking)
    assert script.main(small) == 2
    assert not folder.exists()
    assert folder.with_name("model.checkpoint").exists()
    assert script.main(small) == 0
    assert asked == [0, 1, 2, 3, 3]
    for name in ("", "-step2"):
        a, b = (path.with_name(path.name + name) for path in (folder, whole))
        assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
        assert certificate(a) == certificate(b)
    assert certificate(folder)["steps"] == 4
    assert certificate(folder.with_name("model-step2"))["steps"] == 2
    assert not folder.with_name("model.checkpoint").exists()


def test_a_snapshot_never_replaces_something_else(small: list[str], tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(script, "finetune", lambda *_, **__: pytest.fail("trained"))
    foreign = tmp_path / "model-step2"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("three years", encoding="utf-8")
    assert script.main(small) == 2
    assert "model-step2 holds something else" in capsys.readouterr().err
    assert (foreign / "thesis.txt").exists()


def test_a_run_with_other_pictures_is_another_run(small, composed, tmp_path: Path, capsys, monkeypatch):
    data = own_data(tmp_path, composed)
    assert script.main([*small, *data]) == 0
    pictures = sorted((tmp_path / "pictures").iterdir())
    shutil.copy(pictures[0], pictures[1])
    monkeypatch.setattr(script, "finetune", lambda *_, **__: pytest.fail("trained"))
    assert script.main([*small, *data]) == 2
    assert "something else" in capsys.readouterr().err


def test_two_runs_may_compose_one_set_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wanted, draw, inner = ComposedSet(2, seed=1, names=("dog", "cat", "owl"), captions_each=1), coco._draw, []

    def drawing(folder: Path, *rest: object) -> dict:
        if not inner:  # while the first run draws, a second one draws the same set and finishes it
            inner.append(True)
            compose_coco(tmp_path / "set", wanted, set())
        return draw(folder, *rest)

    monkeypatch.setattr(coco, "_draw", drawing)
    captions, pictures = compose_coco(tmp_path / "set", wanted, set())
    assert len(read_coco(captions, pictures)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_captions_are_read_from_coco_s_json_and_from_lines(tmp_path: Path, composed: tuple[Path, Path]):
    expected = [text for entry in read_coco(*composed) for text in entry.captions]
    assert sorted(coco.read_captions(composed[0])) == sorted(expected)
    lines = tmp_path / "captions.txt"
    lines.write_text("a dog \n\na  cat\na dog\n", encoding="utf-8")
    assert coco.read_captions(lines) == ["a dog", "a cat"]


def test_force_trains_again(small: list[str], tmp_path: Path):
    assert script.main(small) == 0
    assert script.main([*small, "--force", "--seed", "1"]) == 0
    assert certificate(tmp_path / "model")["recipe"]["seed"] == 1


def own_data(tmp_path: Path, composed: tuple[Path, Path]) -> list[str]:
    captions, pictures = (shutil.copy(composed[0], tmp_path), shutil.copytree(composed[1], tmp_path / "pictures"))
    return ["--captions", str(captions), "--pictures", str(pictures)]


def test_other_data_in_coco_s_format_works_by_pointing_at_it(small, composed, tmp_path: Path):
    assert script.main([*small, *own_data(tmp_path, composed)]) == 0
    assert certificate(tmp_path / "model")["data"] | {"sha256": ""} == {
        "captions": "captions.json", "sha256": "", "pictures": 24, "composed": False,
    }  # fmt: skip


def test_the_defender_s_prompts_are_dropped_from_other_data(composed: tuple[Path, Path]):
    data = read_coco(*composed)
    kept = script.without(data, {data[0].captions[1], *data[1].captions})
    assert [len(entry.captions) for entry in kept] == [2, *([3] * 22)]


def damaged_picture(command: list[str]) -> None:
    next(Path(command[3]).iterdir()).write_bytes(b"no picture")


def lost_picture(command: list[str]) -> None:
    next(Path(command[3]).iterdir()).unlink()


def malformed(command: list[str]) -> None:
    Path(command[1]).write_text("{", encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "more", "words"),
    [
        (damaged_picture, [], "cannot be read"),
        (lost_picture, [], "1 of 24 pictures are not in"),
        (malformed, [], "not valid JSON"),
        (lambda command: command.__delitem__(slice(2, 4)), [], "belong together"),
        (lambda _: None, ["--batch", "9"], "24 captioned pictures"),
        (lambda _: None, ["--base", str(ROOT / "Data" / "Models" / "suspects" / "benign")], "vision tower"),
        (lambda _: None, ["--base", str(ROOT / "Data" / "Models" / "tiny-sd")], "vision tower"),
        (lambda _: None, ["--base", "nowhere"], "does not exist"),
        (lambda _: None, ["--method", "half"], "method should be"),
        (lambda _: None, ["--seed", "-1"], "seed should be"),
        (lambda _: None, ["--lr", "inf"], "above 0"),
        (lambda _: None, ["--output", "/proc/nowhere/model"], "cannot be written"),
        (lambda _: None, ["--snapshots", "5"], "snapshots should be"),
    ],
)
def test_bad_input_is_one_sentence_before_any_training(
    small, composed, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, damage, more, words
):
    monkeypatch.setattr(script, "finetune", lambda *_, **__: pytest.fail("trained"))
    command = own_data(tmp_path, composed)
    damage(command)
    assert script.main([*small, *command, *more]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("amber:")]
    assert len(errors) == 1
    assert words in errors[0]
    assert not list(tmp_path.glob("model*"))


def test_a_step_sees_the_same_batch_whenever_it_is_asked_and_an_epoch_every_picture_once():
    data = script.Embedded([(str(i),) for i in range(10)], torch.arange(10.0)[:, None])
    batch = script.batches(data, script.RunConfig(batch=3, seed=2))
    epoch = [batch(step) for step in range(3)]
    assert len({text for texts, _ in epoch for text in texts}) == 9
    for texts, embeddings in epoch:
        assert [float(t) for t in texts] == embeddings.squeeze(1).tolist()
    assert batch(1)[0] == epoch[1][0]
    assert [batch(step)[0] for step in range(3, 6)] != [texts for texts, _ in epoch]
