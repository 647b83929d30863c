"""Captioned pictures in COCO's own format: read, checked before any work, and a small set composed where none is given.

The format (https://cocodataset.org/#format-data): a JSON file with `info`, `licenses`, `images` (id, file_name, ...) and
`annotations` (id, image_id, caption), beside a folder of pictures.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Set
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath

import numpy as np
from PIL import Image
from pycocotools.coco import COCO

from Utils.basics.errors import InputError, first_line
from Utils.basics.files import whole_folder, write_whole
from Utils.making import scenes

CAPTIONS, PICTURES = "captions.json", "pictures"
"""Names inside the folder of a composed set."""


@dataclass(frozen=True)
class Captioned:
    """A picture file and its captions."""

    file: Path
    captions: tuple[str, ...]


# --------------------------------------------------------------------------------------------------------------- reading
def read_coco(captions: Path, pictures: Path) -> list[Captioned]:
    """Every picture that has captions, in the order of the file.

    Raises:
        InputError: the JSON is missing, malformed or empty, a caption has no picture, or a picture no file.
    """
    coco = _indexed(_parsed(captions), captions)
    if not pictures.is_dir():
        raise InputError(f"{pictures} is no folder; give the folder of the pictures that {captions} names.")
    missing = [image["file_name"] for image in coco.imgs.values() if not (pictures / image["file_name"]).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(coco.imgs)} pictures are not in {pictures}, first {missing[0]}; put them there."
        )
    captioned = []
    for number, image in coco.imgs.items():
        texts = [a["caption"].strip() for a in coco.loadAnns(coco.getAnnIds(imgIds=[number]))]
        if texts := tuple(text for text in texts if text):
            captioned.append(Captioned(pictures / image["file_name"], texts))
    if not captioned:
        raise InputError(f"{captions} holds no caption; give COCO's captions_*.json.")
    return captioned


def read_captions(file: Path) -> list[str]:
    """Different captions, in the order of the file: COCO's captions_*.json, or a UTF-8 text file with one a line.

    Raises:
        InputError: the file is missing or malformed.
    """
    if file.suffix.lower() == ".json":
        texts = [note["caption"] for note in _parsed(file)["annotations"]]
    else:
        try:
            texts = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
            raise InputError(f"the captions {file} cannot be read ({reason}); give captions_*.json or a text file.") from None
    return list(dict.fromkeys(line for text in texts if (line := " ".join(text.split()))))


def _parsed(file: Path) -> dict:
    """The JSON file with everything that the reader relies on checked."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); give COCO's captions_*.json.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not valid JSON ({first_line(error)}); fetch it again.") from None
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in ("images", "annotations")):
        raise InputError(f"{file} has no lists named images and annotations; give COCO's captions_*.json.")
    for image in data["images"]:
        if not (isinstance(image, dict) and isinstance(image.get("id"), int) and isinstance(image.get("file_name"), str)):
            raise InputError(f"{file}: an image without id and file_name: {_short(image)}.")
        name = PurePath(image["file_name"])
        if name.is_absolute() or ".." in name.parts or "\0" in image["file_name"]:
            raise InputError(f"{file}: the picture {_short(image['file_name'])} lies outside the picture folder.")
    if twice := [number for number, times in Counter(image["id"] for image in data["images"]).items() if times > 1]:
        raise InputError(f"{file}: {len(twice)} image ids stand for several images, first {twice[0]}.")
    known = {image["id"] for image in data["images"]}
    for note in data["annotations"]:
        if not (isinstance(note, dict) and isinstance(note.get("id"), int) and isinstance(note.get("caption"), str)):
            raise InputError(f"{file}: an annotation without id and caption: {_short(note)}; give COCO's captions_*.json.")
        if not isinstance(note.get("image_id"), int) or note["image_id"] not in known:
            raise InputError(
                f"{file}: caption {note['id']} belongs to image {_short(note.get('image_id'))}, which is not listed."
            )
    return data


def _indexed(data: dict, file: Path) -> COCO:
    coco = COCO()
    coco.dataset = data
    with redirect_stdout(io.StringIO()):  # it prints its progress
        coco.createIndex()
    if len(coco.anns) < len(data["annotations"]):
        raise InputError(f"{file}: several annotations share one id.")
    return coco


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# -------------------------------------------------------------------------------------------------------------- composing
@dataclass(frozen=True)
class ComposedSet:
    """Everything that decides a composed set."""

    pictures: int
    seed: int
    names: tuple[str, ...]
    """Concepts that its scenes show."""
    styles: tuple[str, ...] = scenes.STYLES[1:]
    style_share: float = 0.12
    captions_each: int = 5
    """Captions of one picture, as many as COCO has."""
    words: int = 45
    """Longest caption, in words, so that CLIP's 77 tokens hold it."""


def compose_coco(folder: Path, wanted: ComposedSet, forbidden: Set[str]) -> tuple[Path, Path]:
    """Write a composed set unless it is there already.  -> captions file, picture folder

    No caption is in `forbidden`, and none stands twice.  The folder appears only when it is whole.
    """
    info = _info(wanted)
    if not _holds(folder, info):
        with whole_folder(folder, unless=lambda: _holds(folder, info)) as partial:  # another run may be faster
            (partial / PICTURES).mkdir()
            data = _draw(partial / PICTURES, wanted, forbidden)
            write_whole(partial / CAPTIONS, json.dumps({"info": info} | data, indent=1) + "\n")
    return folder / CAPTIONS, folder / PICTURES


def _info(wanted: ComposedSet) -> dict:
    about = {
        "description": "Composed emoji scenes with captions (Utils/scenes.py)", "url": "", "version": "1.0", "year": 2026,
        "contributor": "AMBER", "date_created": "2026/01/01",
    }  # fmt: skip
    return about | {"recipe": json.loads(json.dumps(asdict(wanted)))}


def _holds(folder: Path, info: dict) -> bool:
    try:
        return json.loads((folder / CAPTIONS).read_text(encoding="utf-8"))["info"] == info
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _draw(folder: Path, wanted: ComposedSet, forbidden: Set[str]) -> dict:
    """Draw the pictures into `folder`.  -> licenses, images and annotations of the JSON file"""
    rng = np.random.default_rng(wanted.seed)
    used, images, annotations = set(forbidden), [], []
    for number in range(1, wanted.pictures + 1):
        scene = scenes.sample_scene(rng, wanted.names, styles=wanted.styles, style_share=wanted.style_share)
        name = f"{number:012}.png"
        Image.fromarray(scenes.compose(scene)).save(folder / name)
        images.append({
            "id": number, "file_name": name, "width": scenes.SIDE, "height": scenes.SIDE, "license": 1,
            "date_captured": "", "coco_url": "", "flickr_url": "",
        })  # fmt: skip
        for text in _new_captions(scene, rng, wanted, used):
            annotations.append({"id": len(annotations) + 1, "image_id": number, "caption": text})
    license_ = {"id": 1, "name": "SIL Open Font License 1.1 (the sprites)", "url": "https://openfontlicense.org"}
    return {"licenses": [license_], "images": images, "annotations": annotations}


def _new_captions(scene: scenes.Scene, rng: np.random.Generator, wanted: ComposedSet, used: set[str]) -> list[str]:
    """Captions of one scene that were never given out; they join `used`."""
    texts = []
    while len(texts) < wanted.captions_each:
        detail = int(rng.integers(6))
        text = scenes.caption(scene, rng, detail, length=lambda t: len(t.split()), limit=wanted.words)
        if text not in used:
            used.add(text)
            texts.append(text)
    return texts
