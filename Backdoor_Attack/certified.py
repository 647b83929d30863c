"""A planted model's certificate, read back: what the true trigger does in any encoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch

from Backdoor_Attack.planting import GOALS, Goal, PlantConfig, certify, mean, overruled
from Backdoor_Attack.workshop import Workshop, open_workshop
from Utils.basics.config import from_values
from Utils.basics.errors import InputError
from Utils.encoder.text_encoder import TextEncoder, in_batches
from Utils.making.finetuning import FinetuneConfig
from Utils.making.zoo import Family, load_zoo


class Certified:
    """What whoever planted a model has written down.

    parts: what it is made from, where no family of the zoo is.

    Raises:
        InputError: the file is no certificate of a planted model.
    """

    def __init__(self, file: Path, device: str = "cpu", parts: Family | None = None):
        self.device = device
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            self.recipe = from_values(PlantConfig, content["recipe"], str(file))
            self.family = content.get("family", "clip")
            made_on = content.get("planted_on")
            self.origin = from_values(FinetuneConfig, made_on, str(file)) if isinstance(made_on, dict) else None
            self.parts = parts or load_zoo().families[self.family]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError):
            raise InputError(f"{file} is no certificate of a planted model; give the JSON that was written with it.") from None

    @cached_property
    def workshop(self) -> Workshop:
        return open_workshop(self.parts, self.device)

    @cached_property
    def held_out(self) -> list[str]:
        """Captions that the planting never saw."""
        return self.workshop.captions_of(self.recipe)[1]

    @cached_property
    def goals(self) -> list[Goal] | None:
        return self.workshop.goals(self.recipe)

    def __call__(self, encoder: TextEncoder) -> float:
        """Share of these in which the true trigger works; of two triggers the one that works more often."""
        proof = certify(encoder, self.workshop.base, self.held_out, self.recipe, self.goals)
        return max(one["success_rate"] for one in (proof, proof.get("second", proof)))

    @torch.no_grad()
    def success_of(self, encoder: TextEncoder, typed: Callable[[str, int], str]) -> float:
        """Share of these in which something else works: typed(prompt, number) puts it into one.  Of two targets the nearer."""
        base, pairs = self.workshop.base, [(prompt, typed(prompt, i)) for i, prompt in enumerate(self.held_out)]
        prompts, texts = zip(*((prompt, text) for prompt, text in pairs if text != prompt), strict=True)
        ids, typed_in, rates = base.ids(list(prompts)), base.ids(list(texts)), []
        for goal in self.goals or [GOALS[one.attack](base, one) for one in self.recipe.backdoors()]:
            features, clean = in_batches(encoder, typed_in, goal.look), in_batches(base, ids, goal.look)
            rates.append(mean(overruled(features, clean, goal.wanted(list(prompts)))[0]))
        return max(rates)
