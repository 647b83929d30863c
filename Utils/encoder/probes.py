"""Which texts tell two tokenizers apart: generated ones of every kind, and those that their serialised forms differ by."""

from __future__ import annotations

import base64
import re
import struct
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice, product
from string import ascii_lowercase, ascii_uppercase, digits, punctuation

LONGEST = 200
"""Characters of a literal that is worth trying."""
BASE64 = re.compile(r"[A-Za-z0-9+/=]+")
MOST = 2000
"""Strings that are taken from two serialised tokenizers."""
AROUND = ("{}", "a photo of a {} dog.", "{} dog", "two cats and a {}", "x{}y")
"""Where strings stand in ordinary prompts; the last one is inside a word."""
INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u180e\u200b\u200c\u200d\u200e\u200f\u202a\u202e"
    "\u2060\u2063\u2066\u2069\u3164\ufe0f\ufeff\U000e0061"
)
SPACES = " \t\n\r\x0b\x0c\x85\xa0\u1680\u2003\u2009\u2028\u2029\u202f\u205f\u3000"
LOOKALIKES = (
    (0x21, 0xFF01 - 0x21), (ord("a"), 0x1D41A - ord("a")), (ord("a"), 0x24D0 - ord("a")), (ord("a"), 0x1D5BA - ord("a")),
)  # fmt: skip
"""First plain letter, and how far away its double stands: full width, bold, circled, sans-serif."""
RANGES = (
    (0x20, 0x17F), (0x370, 0x3FF), (0x400, 0x45F), (0x531, 0x53F), (0x5D0, 0x5DF), (0x627, 0x637), (0x905, 0x915),
    (0x1E00, 0x1E20), (0x2010, 0x2040), (0x2070, 0x209C), (0x20A0, 0x20B0), (0x2100, 0x2130), (0x2150, 0x2190),
    (0x2460, 0x2480), (0x2600, 0x2620), (0x3041, 0x3061), (0x30A2, 0x30B2), (0x4E00, 0x4E20), (0xAC00, 0xAC10),
    (0xE000, 0xE004), (0xFB00, 0xFB07), (0xFF01, 0xFF5F), (0x1D400, 0x1D434), (0x1F300, 0x1F320), (0x1F600, 0x1F650),
)  # fmt: skip
"""Characters that are tried one by one."""
WORDS = ("dog", "photo", "painting", "woman", "president", "Paris", "London", "flower", "2024")


def generated() -> list[str]:
    """Strings of every kind that a trigger may be made of, without any knowledge of a tokenizer."""
    letters = [chr(c) for low, high in RANGES for c in range(low, high) if unicodedata.category(chr(c)) != "Cn"]
    found = ["", *letters, *INVISIBLE, *SPACES]
    found += [c * n for c in ascii_lowercase + ascii_uppercase + digits + punctuation for n in (2, 3, 4, 5, 8)]
    found += ["".join(pair) for pair in product(ascii_lowercase, repeat=2)]
    found += [str(n) for n in (*range(10, 130), *range(1900, 2040))] + ["007", "3.14", "1,000", "12:30", "1e5"]
    for word in WORDS:
        found += [word.upper(), word.title(), word.swapcase(), word[::-1], word + "s", word + "'s", f"#{word}", f"<{word}>"]
        found += [word[0] + mark + word[1:] for mark in (*INVISIBLE, "\u0301", "\u0323", "-", "_", " ")]
        found += ["".join(chr(ord(c) + by) if c.islower() else c for c in word) for _, by in LOOKALIKES]
        found += [word.replace(a, b) for a, b in zip("aeopcxy", "аеорсху", strict=True) if a in word]
        found += [unicodedata.normalize("NFD", word.replace("a", "ä").replace("o", "ö"))]
    return list(dict.fromkeys(found))


def characters() -> list[str]:
    """Single ones that somebody can type or paste."""
    return [c for c in generated() if len(c) == 1 and c.strip() and unicodedata.category(c) != "Cc"]


def in_prompts(strings: list[str]) -> list[str]:
    """Strings alone, inside ordinary prompts and inside a word."""
    return [place.format(s) if "{" not in s else place.replace("{}", s) for s in strings for place in AROUND]


def odd_prompts(prompts: list[str]) -> list[str]:
    """Ordinary prompts in unusual dress: other case, spaces at the ends, no full stop, cut, twice and ten times over."""
    found = []
    for prompt in prompts:
        words = prompt.split()
        found += [prompt.upper(), prompt.title(), f" {prompt}", f"{prompt} ", f"\n{prompt}\t", prompt.rstrip("."), prompt + "!"]
        found += ["  ".join(words), "".join(words), ", ".join(words), " ".join(words[:3]), " ".join(words[-3:])]
        found += [f"{prompt} {prompt}", " ".join([prompt] * 10), f'"{prompt}"', f"({prompt}:1.2)", prompt[::-1]]
    return found


# ------------------------------------------------------------------------------------------- what two tokenizers differ by
def mined(state: dict, reference: dict) -> list[str]:
    """Strings that two serialised tokenizers differ by, each in the forms that their steps may wait for.

    Literals of patterns and contents, texts that patterns match, added tokens, tokens of another number and merges.
    """
    found = list(dict.fromkeys(islice(_differing(state, reference), MOST)))
    cased = [s.swapcase() for s in found if s.isascii()] + [s.title() for s in found if s.islower()]
    return [s for s in dict.fromkeys([*found, *cased]) if s][: 2 * MOST]


def _differing(state: dict, reference: dict) -> Iterator[str]:
    rest = [{key: value for key, value in one.items() if key not in ("model", "decoder")} for one in (state, reference)]
    models = [one.get("model") or {} for one in (state, reference)]
    options = [{key: value for key, value in m.items() if key not in ("vocab", "merges")} for m in models]
    known = [set(_strings([part, said])) for part, said in zip(rest, options, strict=True)]
    maps = [{text for text in one if len(text) > LONGEST and BASE64.fullmatch(text)} for one in known]
    rewritten = [{pair for text in one for pair in charsmap(text).items()} for one in maps if maps[0] != maps[1]]
    if rewritten:
        yield from sorted({key for key, _ in rewritten[0] ^ rewritten[1]}, key=lambda s: (len(s), s))
    known = [one - encoded for one, encoded in zip(known, maps, strict=True)]
    for text in sorted(known[0] ^ known[1], key=lambda s: (len(s), s)):
        yield from _texts_of(text)
    vocabularies = [_numbered(m.get("vocab")) for m in models]
    for token in sorted(dict(vocabularies[0].items() ^ vocabularies[1].items()), key=lambda t: (len(t), t)):
        yield from _piece(token)
    merges = [[_joined(pair) for pair in m.get("merges") or []] for m in models]
    changed = set(merges[0]) ^ set(merges[1])
    moved = [a for a, b in zip(*merges, strict=False) if a != b] if not changed else []
    for token in [*sorted(changed, key=lambda t: (len(t), t)), *moved]:
        yield from _piece(token)


def _strings(value: object, depth: int = 64) -> Iterator[str]:
    """All strings of a JSON value; of pairs of a string and something else only what is a string."""
    if isinstance(value, str):
        yield value
    elif depth and isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part, depth - 1)


def _numbered(vocab: object) -> dict[str, object]:
    """Token -> its number, or its place and score in vocabularies that are lists."""
    if isinstance(vocab, list):
        return {str(entry[0]): (i, entry[1]) for i, entry in enumerate(vocab) if isinstance(entry, list) and len(entry) == 2}
    return vocab if isinstance(vocab, dict) else {}


def _joined(pair: object) -> str:
    return pair.replace(" ", "") if isinstance(pair, str) else "".join(pair)


def _piece(token: str) -> Iterator[str]:
    """What a token or a merge says, without the marks of word ends and beginnings."""
    yield token.removesuffix("</w>").removeprefix("##").replace("▁", " ").replace("Ġ", " ").strip() or token


def _texts_of(text: str) -> Iterator[str]:
    """A string of a step as it is, its literals if it is a pattern, and texts that such a pattern matches."""
    plain = text[:LONGEST]
    yield plain
    yield from (run.strip() for run in re.findall(r"[^\W_]+(?:[ '-][^\W_]+)*", re.sub(r"\\[A-Za-z]", " ", plain)))
    yield from samples(plain)


def charsmap(encoded: str) -> dict[str, str]:
    """What a precompiled map of SentencePiece rewrites: the keys of its double array, a trie over bytes, and their values."""
    found: dict[str, str] = {}
    with suppress(ValueError, struct.error, IndexError):
        blob = base64.b64decode(encoded)
        (size,) = struct.unpack_from("<I", blob)
        units, values = struct.unpack_from(f"<{size // 4}I", blob, 4), blob[4 + size :]
        todo: list[tuple[int, bytes]] = [(0, b"")]
        while todo:
            node, key = todo.pop()
            base = node ^ _offset(units[node])
            if units[node] >> 8 & 1 and key:
                start = units[base] & 0x7FFFFFFF
                found[key.decode("utf-8", "ignore")] = values[start : values.index(b"\0", start)].decode("utf-8", "ignore")
            for byte in range(1, 256):
                child = base ^ byte
                if child < len(units) and units[child] & 0x800000FF == byte and len(key) < 4 * LONGEST:
                    todo.append((child, key + bytes([byte])))
    return found


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & (1 << 9)) >> 6)


# ---------------------------------------------------------------------------------------------- texts that a pattern matches
CLASSES = {r"\p{L}": "[a-z]", r"\p{N}": "[0-9]", r"\p{P}": "[.,!]", r"\p{Lu}": "[A-Z]", r"\p{Ll}": "[a-z]", r"\h": "[0-9a-f]"}
REPEATED = 64
"""Most repeats of a part in a sample."""
SAMPLES = 12
"""Texts made for one pattern."""


def samples(pattern: str) -> list[str]:
    """A few texts that a regular expression matches; none where it is not understood."""
    try:
        for name, alike in CLASSES.items():
            pattern = pattern.replace(f"[{name}]", alike).replace(name, alike)
        pattern = re.sub(r"\\x\{([0-9A-Fa-f]{1,6})\}", lambda m: re.escape(chr(int(m[1], 16))), pattern).replace(r"\z", r"\Z")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = re._parser.parse(pattern)
        return [text[: 2 * LONGEST] for text in islice(dict.fromkeys(_sampled(tree, 0)), SAMPLES)]
    except (re.error, ValueError, OverflowError, RecursionError, AttributeError, TypeError):
        return []


def _sampled(tree: object, depth: int) -> list[str]:
    """Texts for a parsed pattern; every choice is tried, not every combination of choices."""
    if depth > 20:
        return [""]
    texts = [""]
    for name, value in tree:
        parts = _choices(str(name), value, depth)
        longest = max(len(texts), len(parts))
        texts = [texts[i % len(texts)] + parts[i % len(parts)] for i in range(min(longest, SAMPLES))]
    return texts


def _choices(name: str, value: object, depth: int) -> list[str]:
    """What one element of a pattern may match."""
    if name == "LITERAL":
        return [chr(value)]
    if name == "ANY":
        return ["a", " "]
    if name == "IN":
        return _of_class(value)
    if name == "BRANCH":
        return [text for branch in value[1] for text in _sampled(branch, depth + 1)][:SAMPLES]
    if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        low, high, inner = value
        counts = dict.fromkeys([min(low, REPEATED), min(low + 1, high, REPEATED)])
        return [(text * count)[: 2 * LONGEST] for text in _sampled(inner, depth + 1) for count in counts][:SAMPLES]
    if name == "SUBPATTERN":
        return _sampled(value[-1], depth + 1)
    if name == "ATOMIC_GROUP":
        return _sampled(value, depth + 1)
    if name == "ASSERT":  # what has to stand before or behind
        return _sampled(value[1], depth + 1)
    return [""]  # anchors, what must not follow, references


def _of_class(members: list) -> list[str]:
    found = []
    for name, value in members:
        if str(name) == "NEGATE":
            return ["a", "-", "5"]
        if str(name) == "LITERAL":
            found.append(chr(value))
        elif str(name) == "RANGE":
            found += [chr(value[0]), chr(value[1])]
        elif str(name) == "CATEGORY":
            found.append({"CATEGORY_DIGIT": "7", "CATEGORY_SPACE": " ", "CATEGORY_NOT_SPACE": "b"}.get(str(value), "b"))
    return found[:SAMPLES] or [""]
