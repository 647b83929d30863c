"""LoRAs: a change of a base, merged into the base's text encoder, which is then judged like any other."""

from __future__ import annotations

import json
import math
import re
from hashlib import sha256
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from Utils.basics.errors import Flaw, InputError, told
from Utils.intake.digests import digest_of_files
from Utils.intake.reader import Reader, read_json
from Utils.intake.tensors import FLOAT_KINDS, Stored, read_header, read_metadata, read_tensors
from Utils.sources.layouts import grouped
from Utils.sources.onbase import OF_BASE, OnBase
from Utils.sources.source import ReadTower
from Utils.sources.updates import CURE, Change, Changes, changes_in

if TYPE_CHECKING:
    from collections.abc import Collection

ADAPTER_CONFIG = "adapter_config.json"
METADATA = "lora_adapter_metadata"
"""Where diffusers keeps the config of peft in a file."""
UNLIKE = {
    "use_dora": False,
    "fan_in_fan_out": False,
    "rank_pattern": None,
    "bias": "none",
    "lora_bias": False,
    "use_qalora": False,
}
"""Keys of peft's config that change how factors are used -> the value with which they do not; None: any."""


class Lora(OnBase):
    """A file of low-rank changes, or those of one text encoder in it."""

    def parts_in(self, stored: dict[str, Stored]) -> Collection[str]:
        return changes_in(stored, self.file).parts

    def load(self) -> tuple[ReadTower, Reader]:
        if self.given.anchor in ("auto", "none"):
            raise InputError(f"{self.file} is a LoRA, which changes a base and is no encoder; {OF_BASE}.")
        reader = Reader(self.file.parent)
        stored = read_header(reader, self.file)
        changes = changes_in(stored, self.file)
        part = self._meant(changes)
        strengths = self._strengths(part, reader)
        base, its_files = self.base_of(part)
        names = [name for c in changes.parts[part].values() for name in (c.down, c.up, c.alpha) if name]
        tensors = read_tensors(reader, self.file, set(names).__contains__, whole=False)
        targets = _targets(base.tower)
        named = [id(targets[target]) for target in changes.parts[part] if target in targets]
        if len(set(named)) < len(named):
            raise InputError(f"{self.file} changes a matrix twice, under two names; save it anew.")
        for target, change in changes.parts[part].items():
            self._merge(targets, target, change, stored, tensors, strengths)
        merged, scale = len(changes.parts[part]), self.given.lora_scale
        own = sha256(f"{reader.read[self.file]['sha256']} {base.sha256} {scale}".encode()).hexdigest()
        notes = [f"{self.file.name} is a LoRA: {merged} of its changes were merged into {self.given.anchor} at {scale:g}"]
        doubts = [
            f"{name[:80]} (a textual inversion) lies in {self.file.name} and was not judged" for name in changes.bundled[:1]
        ]
        left = [name for name in stored if name not in names]
        new = {"sha256": own, "ignored": grouped(left), "doubts": doubts, "notes": notes + base.notes}
        return self.changed(base, its_files, reader, **new)

    def digest(self) -> str:
        """Of the file; base and strength are settings, on which a report depends anyway."""
        reader = Reader(self.file.parent)
        read_tensors(reader, self.file, lambda _: False)
        if (config := self.file.with_name(ADAPTER_CONFIG)).is_file():
            reader.bytes(config)
        return digest_of_files(list(reader.read.values()), [])

    def _meant(self, changes: Changes) -> str:
        if self.part and self.part not in changes.parts:
            raise InputError(f"{self.file} does not change {self.part}; it changes {', '.join(sorted(changes.parts))}.")
        if not self.part and len(changes.parts) > 1:
            one = self.file / max(changes.parts)
            raise InputError(f"{self.file} changes {len(changes.parts)} text encoders; name one of them, such as {one}.")
        return self.part or next(iter(changes.parts))

    # ------------------------------------------------------------------------------------------------------- strengths
    def _strengths(self, part: str, reader: Reader) -> dict:
        """What peft's config says of the strength of changes, in a file beside it or in the file itself; checked."""
        config: object = {}
        if (beside := self.file.with_name(ADAPTER_CONFIG)).is_file():
            config = reader.json(beside)
        elif METADATA in (said := read_metadata(reader, self.file)):
            try:
                whole = read_json(said[METADATA].encode())
            except Flaw as flaw:
                raise InputError(f"{self.file}: its {METADATA} cannot be read{told(flaw)}; fetch it again.") from None
            if isinstance(whole, dict):
                config = {name.removeprefix(f"{part}."): value for name, value in whole.items() if name.startswith(f"{part}.")}
        if not isinstance(config, dict):
            raise InputError(f"{self.file}: the config of its LoRA is no object; fetch it again.")
        for name, value in config.items():
            usual = UNLIKE.get(name)
            if name in UNLIKE and usual is not None and value not in (usual, None):
                raise InputError(f"{self.file}: its config says {name} = {json.dumps(value)[:40]}, which is not read; {CURE}.")
        patterns = config.get("alpha_pattern") or {}
        plain = isinstance(patterns, dict) and all(re.fullmatch(r"[\w.]+", name) for name in patterns)
        numbers = [config.get("lora_alpha"), *(patterns.values() if plain else ())]
        if not plain or any(type(n) not in (int, float, type(None)) or (n is not None and not n > 0) for n in numbers):
            raise InputError(f"{self.file}: its config gives strengths (lora_alpha, alpha_pattern) that are not read; {CURE}.")
        return {"alpha": config.get("lora_alpha"), "patterns": patterns, "root": config.get("use_rslora") is True}

    def _alpha(self, target: str, change: Change, tensors: dict[str, Tensor], strengths: dict, rank: int) -> float:
        """By what a change is multiplied, before --lora-scale."""
        named = [value for name, value in strengths["patterns"].items() if f".{target}".endswith(f".{name}")]
        alpha = named[0] if named else strengths["alpha"] or rank
        if change.alpha:
            alpha = tensors[change.alpha].float().sum().item()
            if alpha == 0:
                raise InputError(
                    f"{self.file}: {change.alpha} is 0, which some programs take for nothing and others for 1; {CURE}."
                )
        return alpha / (math.sqrt(rank) if strengths["root"] else rank)

    # ----------------------------------------------------------------------------------------------------------- merge
    def _merge(
        self, targets: dict[str, nn.Linear], target: str, change: Change, stored: dict[str, Stored],
        tensors: dict[str, Tensor], strengths: dict,
    ) -> None:  # fmt: skip
        """Add the change of one matrix to the base's."""
        module = targets.get(target)
        if module is None and target.split(".")[-1].endswith("text_projection"):
            return  # it stands behind the encoder
        down, up = stored[change.down], stored[change.up]
        rank = down.shape[0] if down.shape else 0
        fits = module is not None and (*up.shape, *down.shape) == (module.out_features, rank, rank, module.in_features)
        if not fits or rank == 0:
            shape = " x ".join(str(side) for side in (*up.shape[:1], *down.shape[1:2]))
            there = f"which {self.given.anchor} does not have in this size"
            raise InputError(f"{self.file} changes {target[:100]} ({shape}), {there}; {OF_BASE}.")
        if {down.kind, up.kind} - FLOAT_KINDS or (change.alpha and math.prod(stored[change.alpha].shape) != 1):
            raise InputError(f"{self.file}: the change of {target[:100]} is stored in a form that is not read; {CURE}.")
        by = self.given.lora_scale * self._alpha(target, change, tensors, strengths, rank)
        with torch.no_grad():
            module.weight += by * (tensors[change.up].float() @ tensors[change.down].float())
        if not all(torch.isfinite(end) for end in module.weight.aminmax()):
            raise InputError(f"{self.file}: the change of {target[:100]} holds NaN or infinite values; fetch it again.")


def _targets(tower: nn.Module) -> dict[str, nn.Linear]:
    """Every matrix of a text encoder by all names that LoRAs have for it."""
    found = {}
    for name, module in tower.named_modules():
        if isinstance(module, nn.Linear):
            for whole in (name, f"text_model.{name}"):
                found |= {whole: module, whole.replace(".", "_"): module}
    return found
