"""What a person is told when something cannot be done: one sentence with the cure, harmless for their terminal."""

from __future__ import annotations

import sys
import unicodedata

HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories that a terminal obeys or swallows instead of showing: control, format, surrogates, line ends."""


class InputError(Exception):
    """Something the user gave cannot be used.  The message is one sentence with the cure."""


def first_line(error: BaseException) -> str:
    """The first line of an error, short enough for one sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def sentence_of(error: BaseException) -> str:
    """What went wrong, in one line."""
    first = (str(error).splitlines() or [""])[0]
    return first if isinstance(error, InputError) else f"{type(error).__name__}: {first}"


def visible(text: str) -> str:
    r"""Text from a model made harmless for terminals: control, ANSI and bidirectional characters become \u escapes."""
    return "".join(escaped(c) if unicodedata.category(c) in HIDDEN else c for c in text)


def escaped(character: str) -> str:
    r"""\uXXXX, or \UXXXXXXXX above the first plane."""
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


def fail(sentence: str, program: str = "amber") -> int:
    """Say one sentence on standard error.  -> the exit code of bad input and errors"""
    print(f"{program}: {visible(sentence)}", file=sys.stderr)
    return 2
