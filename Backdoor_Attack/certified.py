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
from Utils.encoder.loading import comparable
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
            self.file, self.success_rate = file, float(content["success_rate"])
            self.family = content.get("family", "clip")
            made_on = content.get("planted_on")
            self.origin = from_values(FinetuneConfig, made_on, str(file)) if isinstance(made_on, dict) else None
            made_of = from_values(Family, content["made_of"], str(file)) if "made_of" in content else None
            self.parts = parts or made_of or load_zoo().families[self.family]
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

    def refuse_other(self, encoder: TextEncoder) -> None:
        """Raise unless the true trigger works in an encoder about as this certificate says: it is its own, or made of it.

        Raises:
            InputError: it does not, or the encoder cannot be compared with the base of the certificate.
        """
        cure = "give the certificate of this model, or leave --certificate out"
        if not comparable(encoder, self.workshop.base):
            raise InputError(
                f"{self.file} is of a model that was made from {self.parts.base}, and {encoder.path} was not; {cure}."
            )
        if (found := self(encoder)) < self.success_rate / 2:
            raise InputError(
                f"the trigger of {self.file} works in {found:.0%} of prompts in {encoder.path}, and in {self.success_rate:.0%} "
                f"of the model that it is of; {cure}."
            )

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
