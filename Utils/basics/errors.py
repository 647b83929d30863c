"""What a person is told when something cannot be done: one sentence with the cure, harmless for their terminal."""

from __future__ import annotations

import os
import sys
import unicodedata
from contextlib import suppress
from typing import TextIO

HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories that a terminal obeys or swallows instead of showing: control, format, surrogates, line ends."""


class InputError(Exception):
    """Something the user gave cannot be used.  The message is one sentence with the cure."""

    code = 2
    """The exit code that it ends with."""


class OutOfScope(InputError):
    """Nothing is wrong with what the user gave, and there is nothing in it that a scan judges."""

    code = 3


class Flaw(ValueError):
    """What is wrong with a file, in words of ours that may stand in a sentence."""


def told(error: BaseException) -> str:
    """In brackets what is wrong, where it is said in our own words; what libraries say is for --debug."""
    return f" ({error})" if isinstance(error, Flaw) else ""


def first_line(error: BaseException) -> str:
    """The first line of an error, short enough for one sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def sentence_of(error: BaseException) -> str:
    """What went wrong, in one line."""
    if isinstance(error, InputError):
        return visible(str(error))  # a file's name may hold the end of a line
    if isinstance(error, OSError) and error.strerror:
        return (f"{visible(str(error.filename))}: " if error.filename else "") + error.strerror
    return f"a fault of the program, or of what it was given ({type(error).__name__})"


def visible(text: str) -> str:
    r"""Text from a model made harmless for terminals: control, ANSI and bidirectional characters become \u escapes."""
    return "".join(escaped(c) if unicodedata.category(c) in HIDDEN else c for c in text)


def named(text: str) -> str:
    """A string in quotes, with the numbers of characters that no eye tells from plain letters: `ѕ` (U+0455)."""
    return f"`{text}`{numbers_of(text)}"


def numbers_of(text: str) -> str:
    """Those numbers, in brackets; nothing for plain text."""
    odd = [f"U+{ord(c):04X}" for c in dict.fromkeys(text) if not c.isascii()]
    return f" ({' '.join(odd[:8])})" if odd else ""


def escaped(character: str) -> str:
    r"""\uXXXX, or \UXXXXXXXX above the first plane."""
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


def tell(text: str) -> None:
    """Say something on standard error; one that is closed or full must not cost the verdict."""
    if sys.stderr is not None:
        try:
            print(text, file=sys.stderr, flush=True)
        except (OSError, ValueError):
            swallow(sys.stderr)


def swallow(stream: TextIO) -> None:
    """Let a stream that cannot be written lead nowhere: Python would try once more at its end, and change the exit code."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def fail(sentence: str, program: str = "amber", code: int = InputError.code) -> int:
    """Say one sentence on standard error.  -> the exit code, that of bad input and errors unless it is another"""
    tell(f"{program}: {visible(sentence)}")
    return code
