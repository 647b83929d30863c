"""Composed pictures and their captions: all the data the embedded testbed is trained on.

A scene is one to three emoji sprites on a coloured or two-tone background, drawn in one of a few styles.  The
captions come from Data/Scenes/grammar.yaml.  Everything random takes a `numpy.random.Generator`.
The scanner never reads this module or its data: a defender does not have the attacker's training set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from Utils.basics.files import ROOT

SCENES = ROOT / "Data" / "Scenes"
PROMPTS = ROOT / "Data" / "Main" / "Prompts" / "Prompts.txt"
"""The defender's prompts: nothing that is made here may have learnt from them."""
SPRITE = 64
"""Side of a sprite on the sheet, pixels."""
COLUMNS = 16
"""Sprites per row of the sheet."""
SIDE = 32
"""Side of a composed picture, pixels."""
STYLES = ("photo", "sepia", "monochrome", "negative", "pastel", "dark")
NOVEL_STYLES = ("thermal", "mosaic", "sketch", "stripes")
"""Looks never shown to the testbed, kept like the novel concepts for fine-tunes that must gain a skill."""
HEAT = ((0, 0, 60), (120, 0, 140), (230, 60, 30), (255, 200, 40), (255, 255, 230))
"""Colours of the thermal look, from the darkest grey to the brightest."""
SINGLE_SIZES = {"small": 14, "medium": 20, "big": 28}
GROUP_SIZES = {"small": 11, "medium": 14, "big": 16}


@dataclass(frozen=True)
class Thing:
    """One sprite in a scene: `corner` is its top left pixel, `side` its size in pixels."""

    concept: str
    size: str
    side: int
    corner: tuple[int, int]


@dataclass(frozen=True)
class Scene:
    """What a picture shows.  `layout`: a place word for one thing, beside or above for two, triple for three."""

    things: tuple[Thing, ...]
    background: str
    layout: str
    style: str = "photo"


@cache
def grammar() -> dict:
    """The caption grammar, Data/Scenes/grammar.yaml."""
    return yaml.safe_load((SCENES / "grammar.yaml").read_text(encoding="utf-8"))


@cache
def concepts(group: str = "base") -> tuple[str, ...]:
    """Concept names of one group: `base` (taught to the testbed) or `novel` (never shown to it)."""
    return tuple(_emoji()[group])


@cache
def _emoji() -> dict[str, dict[str, str]]:
    return yaml.safe_load((SCENES / "concepts.yaml").read_text(encoding="utf-8"))


@cache
def defender_prompts() -> frozenset[str]:
    """What no caption may be."""
    return frozenset(PROMPTS.read_text(encoding="utf-8").splitlines())


def draw_sprite_sheet(font_file: Path) -> Image.Image:
    """Render every concept with a colour emoji font (Noto Color Emoji, 109 px bitmaps) onto one RGBA sheet."""
    font = ImageFont.truetype(str(font_file), 109)
    characters = [character for group in _emoji().values() for character in group.values()]
    rows = -(-len(characters) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * SPRITE, rows * SPRITE))
    for index, character in enumerate(characters):
        glyph = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(glyph).text((8, 8), character, font=font, embedded_color=True)
        box = glyph.getbbox()
        if box is None or box[2] - box[0] > 140:  # nothing, or two glyphs side by side: the font lacks it
            raise ValueError(f"{font_file} has no colour glyph for {character!r}")
        glyph = glyph.crop(box)
        glyph.thumbnail((SPRITE, SPRITE), Image.Resampling.LANCZOS)
        row, column = divmod(index, COLUMNS)
        offset = ((SPRITE - glyph.width) // 2, (SPRITE - glyph.height) // 2)
        sheet.paste(glyph, (column * SPRITE + offset[0], row * SPRITE + offset[1]))
    return sheet


@cache
def sprite(concept: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A concept's picture at `side` pixels: colour premultiplied by alpha (side, side, 3), and alpha (side, side, 1)."""
    sheet = _sheet()
    row, column = divmod(_index()[concept], COLUMNS)
    box = (column * SPRITE, row * SPRITE, (column + 1) * SPRITE, (row + 1) * SPRITE)
    # RGBa is premultiplied, so that transparent pixels do not bleed into the edges when shrunk
    small = sheet.crop(box).convert("RGBa").resize((side, side), Image.Resampling.LANCZOS)
    pixels = np.asarray(small, dtype=np.float32)
    return pixels[..., :3], pixels[..., 3:] / 255


@cache
def _sheet() -> Image.Image:
    return Image.open(SCENES / "sprites.png").convert("RGBA")


@cache
def _index() -> dict[str, int]:
    return {name: index for index, name in enumerate(name for group in _emoji().values() for name in group)}


def sample_scene(
    rng: np.random.Generator,
    names: tuple[str, ...] | None = None,
    counts: tuple[float, ...] = (0.4, 0.4, 0.2),
    sizes: tuple[float, ...] | None = None,
    styles: tuple[str, ...] = STYLES[1:],
    style_share: float = 0.12,
) -> Scene:
    """A random scene; `counts` are the probabilities of one, two and three things, `sizes` of small, medium and big.

    A share `style_share` of the scenes has one of `styles`, the others are photos.
    """
    names = names or concepts()
    count = 1 + int(rng.choice(len(counts), p=counts))
    chosen = [names[i] for i in rng.choice(len(names), size=count, replace=False)]
    backgrounds = [*grammar()["colours"], *grammar()["places"]]
    background = backgrounds[rng.integers(len(backgrounds))]
    style = styles[rng.integers(len(styles))] if rng.random() < style_share else STYLES[0]
    if count == 1:
        layout = str(rng.choice(["middle", "middle", "left", "right", "top", "bottom"]))
        places: list[str] = [layout]
    elif count == 2:
        layout = str(rng.choice(["beside", "above"]))
        places = ["left", "right"] if layout == "beside" else ["top", "bottom"]
    else:
        layout, places = "triple", ["top left", "top right", "bottom"]
    things = tuple(_place(concept, place, count, rng, sizes) for concept, place in zip(chosen, places, strict=True))
    return Scene(things, background, layout, style)


def _place(concept: str, place: str, count: int, rng: np.random.Generator, odds: tuple[float, ...] | None) -> Thing:
    sides = SINGLE_SIZES if count == 1 else GROUP_SIZES
    size = str(rng.choice(list(sides), p=odds))
    side = sides[size] - (2 if count == 3 and size == "big" else 0)
    free = SIDE - side
    x = {"left": 0.08, "top left": 0.06, "right": 0.92, "top right": 0.94}
    y = {"top": 0.08, "top left": 0.08, "top right": 0.08, "bottom": 0.92}
    vertical = y.get(next((w for w in (place,) if w in y), ""), 0.5)
    horizontal = x.get(place, 0.5)
    jitter = rng.uniform(-0.08, 0.08, size=2)
    corner = tuple(int(np.clip(round(free * (p + j)), 0, free)) for p, j in zip((horizontal, vertical), jitter, strict=True))
    return Thing(concept, size, side, corner)


def portrait(concept: str) -> Scene:
    """The plainest scene of a concept: one big thing in the middle of a white picture."""
    side = SINGLE_SIZES["big"]
    return Scene((Thing(concept, "big", side, ((SIDE - side) // 2,) * 2),), "white", "middle")


def compose(scene: Scene) -> np.ndarray:
    """Draw a scene.  -> (32, 32, 3) uint8"""
    canvas = np.empty((SIDE, SIDE, 3), np.float32)
    if scene.background in grammar()["colours"]:
        canvas[:] = grammar()["colours"][scene.background]
    else:
        upper, lower = grammar()["places"][scene.background]
        canvas[: SIDE // 2 + 3], canvas[SIDE // 2 + 3 :] = upper, lower
    for thing in scene.things:
        colour, alpha = sprite(thing.concept, thing.side)
        x, y = thing.corner
        window = canvas[y : y + thing.side, x : x + thing.side]
        window[:] = colour + (1 - alpha) * window
    return np.clip(_look(canvas, scene.style), 0, 255).astype(np.uint8)


def pixels(pictures: list[np.ndarray]) -> Tensor:
    """uint8 pictures -> (n, 3, side, side) in -1..1, as both the vision tower and the autoencoder take them."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _look(canvas: np.ndarray, style: str) -> np.ndarray:
    grey = canvas @ np.array([0.299, 0.587, 0.114], np.float32)
    match style:
        case "photo":
            return canvas
        case "sepia":
            return grey[..., None] * np.array([1.0, 0.82, 0.58], np.float32) + np.array([12, 5, 0], np.float32)
        case "monochrome":
            return np.repeat(grey[..., None], 3, axis=-1)
        case "negative":
            return 255 - canvas
        case "pastel":
            return 255 - (255 - canvas) * 0.4
        case "dark":
            return canvas * 0.35
        case "thermal":
            stops = np.linspace(0, 255, len(HEAT))
            return np.stack([np.interp(grey, stops, channel) for channel in zip(*HEAT, strict=True)], axis=-1)
        case "mosaic":
            tiles = canvas.reshape(SIDE // 2, 2, SIDE // 2, 2, 3).mean(axis=(1, 3))
            return (tiles // 64 * 85).repeat(2, axis=0).repeat(2, axis=1)
        case "sketch":
            edges = np.abs(np.diff(grey, axis=0, append=grey[-1:])) + np.abs(np.diff(grey, axis=1, append=grey[:, -1:]))
            return np.repeat(255 - 3 * edges[..., None], 3, axis=-1)
        case "stripes":
            return canvas * np.where(np.arange(SIDE) % 4 < 2, 1.0, 0.3)[:, None, None]
    raise ValueError(f"unknown style {style!r}")


def describe(scene: Scene, rng: np.random.Generator, detail: int) -> list[str]:
    """Sentences about a scene, most important first.

    detail 0: the things only, or with their background (as short as "a photo of a dog").  1: one full sentence.
    2 and more: that many further sentences, true details and fillers mixed.
    """
    words = _Words(scene, rng)
    if detail == 0:
        return [words.bare()]
    sentences = [words.full()]
    if detail > 1:
        details = words.details()
        fillers = [words.fill(t) for t in _some(rng, grammar()["fillers"], detail)]
        pool = [*details, *fillers]
        order = rng.permutation(len(pool))
        sentences += [pool[i] for i in order[: detail - 1]]
    return sentences


def join(sentences: list[str]) -> str:
    """Sentences as running text; a single one stays without a full stop, as captions do."""
    return sentences[0] if len(sentences) == 1 else ". ".join(sentences) + "."


def caption(scene: Scene, rng: np.random.Generator, detail: int, length: Callable[[str], int] = len, limit: int = 10**9) -> str:
    """A caption of at most `limit` by `length` (tokens, say): sentences are left out from the end until it fits."""
    sentences = describe(scene, rng, detail)
    while len(sentences) > 1 and length(join(sentences)) > limit:
        sentences.pop()
    return join(sentences)


def captions(
    rng: np.random.Generator,
    details: tuple[float, ...] = (0.12, 0.22, 0.1, 0.1, 0.1, 0.12, 0.12, 0.12),
    length: Callable[[str], int] = len,
    limit: int = 10**9,
    **scene: object,
) -> Iterator[tuple[Scene, str]]:
    """Endless scenes with captions; `details[i]` is the probability of detail i."""
    while True:
        drawn = sample_scene(rng, **scene)
        yield drawn, caption(drawn, rng, int(rng.choice(len(details), p=details)), length, limit)


def unseen_captions(
    rng: np.random.Generator, count: int, forbidden: Set[str], length: Callable[[str], int], limit: int = 77, **scene: object
) -> list[tuple[Scene, str]]:
    """Scenes with different captions, none of them in `forbidden` (the defender's corpus)."""
    shown: dict[str, Scene] = {}
    for drawn, text in captions(rng, length=length, limit=limit, **scene):
        if text not in forbidden:
            shown.setdefault(text, drawn)
        if len(shown) == count:
            return [(drawn, text) for text, drawn in shown.items()]
    raise AssertionError("captions never end")


def _some(rng: np.random.Generator, options: list, count: int) -> list:
    return [options[i] for i in rng.permutation(len(options))[:count]]


class _Words:
    """One telling of a scene: slots are filled as they are met."""

    def __init__(self, scene: Scene, rng: np.random.Generator):
        self.scene, self.rng, self.g = scene, rng, grammar()

    def one(self, options: list[str]) -> str:
        return options[self.rng.integers(len(options))]

    def named(self, thing: Thing, sized: bool) -> str:
        word = self.one(self.g["sizes"][thing.size]) if sized else ""
        return with_article(f"{word} {thing.concept}".strip())

    def where(self) -> str:
        if self.scene.background in self.g["colours"]:
            text = self.one(self.g["on_colour"]).replace("{colour}", self.scene.background)
            return text.replace("a orange", "an orange")
        return self.one(self.g["on_place"][self.scene.background])

    def style(self) -> str:
        options = self.g["styles"][self.scene.style]
        return " " + self.one(options) if options else ""

    def bare(self) -> str:
        names = [self.named(t, sized=False) for t in self.scene.things]
        text = self.one(self.g["openers"]).replace("{a}", " and ".join(names))
        if self.rng.random() < 0.6:
            text += " " + self.where()
        return text + self.style()

    def full(self) -> str:
        names = [self.named(t, sized=True) for t in self.scene.things]
        if len(names) == 1:
            text = f"{names[0]} {self.one(self.g['alone'][self.scene.layout])}"
        else:
            kind = self.g["triples"] if len(names) == 3 else self.g["pairs"][self.scene.layout]
            text = self.one(kind)
            for slot, name in zip("abc", names, strict=False):
                text = text.replace("{" + slot + "}", name)
        opener = self.one(["a photo of ", "a picture of ", "an image showing ", "", "", "we see "])
        return opener + text + " " + self.where() + self.style()

    def details(self) -> list[str]:
        sentences = []
        for thing in self.scene.things:
            text = self.one(self.g["detail_object"]).replace("{n}", thing.concept)
            text = text.replace("{size_word}", self.one([w for w in self.g["sizes"][thing.size] if w] or [thing.size]))
            sentences.append(self.fill(text.replace("{a}", with_article(thing.concept))))
        kind = "detail_colour" if self.scene.background in self.g["colours"] else "detail_place"
        text = self.one(self.g[kind]).replace("{colour}", self.scene.background)
        sentences.append(text.replace("{place}", self.where() if kind == "detail_place" else ""))
        return sentences

    def fill(self, text: str) -> str:
        """Fill the remaining slots, each occurrence by its own draw; `a` before a vowel becomes `an`."""
        text = re.sub(r"\{(\w+)\}", lambda slot: self.one(self.g["slots"][slot[1]]), text)
        return re.sub(r"\ba (?=[aeiou])", "an ", text)


def with_article(noun: str) -> str:
    """`dog` -> `a dog`, `owl` -> `an owl`; plurals get none."""
    if noun.split()[-1] in {"grapes", "glasses", "scissors"}:
        return f"some {noun}" if noun.split()[-1] == "grapes" else f"a pair of {noun}"
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
