"""The settings of our own repair (Utils/repair/unlearning.py); smaller numbers stand beside what they are for."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class RepairConfig:
    """Chosen on the models that docs/mitigation.md names."""

    directions: int = 4
    """Up to so many singular directions are taken out, one by one, of what a weight matrix has learned since the base."""
    left: float = 0.2
    """Directions are taken out until no found string does more than this of what the strongest did."""
    ways: int = 2
    """Directions, of every target, in which found strings change texts most, that words which bend are wanted without."""
    steps: int = 250
    """Steps of a round."""
    lr: float = 6.0e-4
    """AdamW's rate at its highest, for narrow encoders; it rises and falls once in a round."""
    rounds: int = 3
    """Most rounds: after each but the last a scan with a fresh seed says whether another one is needed."""
    clean: int = 12
    """Clean prompts of a step."""
    invented: int = 9
    """Prompts of a step in which words are replaced by ones that nobody has seen, as a fine-tune may have taught some."""
    taught: float = 3.0
    """Weight of these beside all."""
    known: int = 1
    """Prompts of a step in which words are replaced by words and pieces of the vocabulary."""
    garbled: int = 4
    """Prompts of a step in which something stands for a letter, as look-alike triggers do."""
    bent: int = 6
    """Prompts of a step in which a word that bends stands for a letter; it is made of the tokens that moved most."""
    letters: float = 1.0
    """Weight of prompts in which anything stands for a letter, beside all."""
    found: int = 3
    """Prompts of a step with a string that was found."""
    strings: float = 2.0
    """Weight of prompts with a string that was found or is looked for, beside all."""
    searched: int = 5
    """Prompts of a step with tokens that are looked for while the student learns (`Opponents`)."""
    opponents: int = 80
    """Strings of tokens that are looked for side by side."""
    flips: int = 6
    """Tokens of such a string that are replaced before it makes room for a new one."""
    whole: int = 4
    """Every so many steps all positions are looked at, padding too; in between none behind the longest text."""
    honest: float = 0.02
    """Least bend towards a target that is taken for one; the bend of 95 % of clean prompts, where that is more."""

    def __post_init__(self):
        for name in ("directions", "ways", "steps", "rounds", "clean", "opponents", "flips", "whole"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} should be at least 1")
        if not 0 < self.left < 1:
            raise ValueError("left should be above 0 and below 1")
        counts, weights = (self.invented, self.known, self.garbled, self.searched), (self.taught, self.letters, self.strings)
        if min(*counts, *weights, self.bent, self.found) < 0 or not self.lr > 0:
            raise ValueError("counts and weights of prompts should be 0 or more and lr above 0")
        if not any(counts):
            raise ValueError("of invented, known, garbled and searched one should be above 0, as no string may be found")


def are_present(settings: dict | None) -> bool:
    """Whether a repair that told these settings had the present ones; one that told none repaired nothing."""
    return settings is None or settings == asdict(RepairConfig())
