"""Texts in which a trigger could hide: prompts with words that nobody has seen, with something for a letter, with strings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable

import numpy as np

from Utils.scan.replay import LETTERS, PLACES, put

SHORTEST, LONGEST = 3, 12
"""Letters of an invented word."""
COMMON = 8
"""Letters that something is put in place of: the most frequent ones of the prompts."""
AS_FOUND = 0.6
"""How often a string stands where it was found; else anywhere."""
REPLACED = 3
"""Most words of a prompt that are replaced."""
PIECE = 5
"""Most characters that stand for a letter."""


class Invented:
    """Words that no language has, by the letters that follow each other in the words of prompts."""

    def __init__(self, prompts: list[str]):
        words = sorted({word.strip(".,:;").lower() for prompt in prompts for word in prompt.split()} - {""})
        follow: dict[str, Counter] = defaultdict(Counter)
        for word in words:
            marked = f"^^{word}$"
            for at in range(len(word) + 1):
                follow[marked[at : at + 2]][marked[at + 2]] += 1
        self._next = {two: (list(c), np.cumsum(list(c.values())) / sum(c.values())) for two, c in follow.items()}
        self.letters = [one for one, _ in Counter("".join(words)).most_common(COMMON)]

    def word(self, rng: np.random.Generator) -> str:
        while True:
            marked = "^^"
            while len(marked) - 2 < LONGEST:
                letters, shares = self._next[marked[-2:]]
                following = letters[min(int(np.searchsorted(shares, rng.random())), len(letters) - 1)]
                if following == "$":
                    break
                marked += following
            if len(marked) - 2 >= SHORTEST:
                return marked[2:]


def with_other_words(prompt: str, word: Callable[[], str], rng: np.random.Generator) -> str:
    """One to `REPLACED` words of a prompt replaced."""
    words = prompt.split()
    for at in rng.permutation(len(words))[: int(rng.integers(1, REPLACED + 1))]:
        words[at] = word()
    return " ".join(words)


def garbled(prompt: str, invented: Invented, known: list[str], rng: np.random.Generator) -> str:
    """Something in place of a letter, wherever it stands: a few letters, a token, the same character over and over."""
    letter = invented.letters[int(rng.integers(len(invented.letters)))]
    makers = (
        lambda: invented.word(rng)[: int(rng.integers(1, PIECE))],
        lambda: known[int(rng.integers(len(known)))][:PIECE],
        lambda: "".join(invented.word(rng)[0] for _ in range(int(rng.integers(1, PIECE)))),
        lambda: known[int(rng.integers(len(known)))][0] * int(rng.integers(1, PIECE)),
    )
    return prompt.replace(letter, makers[int(rng.integers(len(makers)))]())


def for_a_letter(prompt: str, words: list[str], letters: list[str], rng: np.random.Generator) -> str:
    """One of these words in place of one of these letters, wherever it stands."""
    return prompt.replace(letters[int(rng.integers(len(letters)))], words[int(rng.integers(len(words)))])


def with_string(prompt: str, text: str, place: str, rng: np.random.Generator) -> str:
    """A string that was found, mostly at its place."""
    anywhere = (*PLACES, *LETTERS)
    where = place if rng.random() < AS_FOUND else anywhere[int(rng.integers(len(anywhere)))]
    return put(text, prompt, where, int(rng.integers(1000)))
