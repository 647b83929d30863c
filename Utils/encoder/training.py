"""How weights are trained so that an interruption costs minutes: one loop for planting, fine-tuning and the testbed."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from Utils.basics.files import whole_file
from Utils.encoder.text_encoder import TextEncoder


class Stateful(Protocol):
    """What a training has to remember beside its weights."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> object: ...


@dataclass(frozen=True)
class Checkpoint:
    """Where an interrupted training goes on."""

    file: Path
    """Where the state is kept."""
    identity: str
    """What the training is; a file of another one is not taken."""
    every: int = 100
    """Steps between two savings."""
    pause: float = 0.0
    """Least seconds between two savings."""
    keep: bool = True
    """Whether the file stays when the training is done, for whoever has more to do with the weights."""

    def due(self, done: int, steps: int, waited: float) -> bool:
        """Whether to save after `done` of `steps` steps, `waited` seconds after the last saving."""
        if done == steps:
            return self.keep
        return done % self.every == 0 and waited >= self.pause

    def load(self, device: torch.device) -> dict | None:
        """The last state, or None where there is none of this training."""
        try:
            state = torch.load(self.file, map_location=device, weights_only=True)
        except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError):  # no file, half of one, or not ours
            return None
        return state if isinstance(state, dict) and state.get("identity") == self.identity else None

    def save(self, state: dict) -> None:
        with whole_file(self.file) as partial:
            torch.save(state | {"identity": self.identity}, partial)


def identity(cfg: Any, base: TextEncoder, *data: str) -> str:
    """One hash of everything that decides a training: its config, its base, and hashes or texts of what it learns from."""
    return sha256(json.dumps([asdict(cfg), base.sha256, *data], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Training:
    """What is trained, and how."""

    parts: dict[str, nn.Module]
    """Modules by name; what requires a gradient in them moves."""
    optimiser: torch.optim.Optimizer
    """Holds these weights."""
    schedule: torch.optim.lr_scheduler.LRScheduler
    steps: int
    label: str = ""
    """Name of the progress bar; empty: none is shown."""
    checkpoint: Checkpoint | None = None
    also: dict[str, Stateful] = field(default_factory=dict)
    """Further states that a checkpoint keeps."""
    longest: float | None = None
    """Gradients are cut to this norm."""


def train(
    run: Training, step_loss: Callable[[int], tuple[Tensor, str]], after_step: Callable[[int, str], None] = lambda *_: None
) -> None:
    """Train, or go on from a checkpoint of the same run.

    step_loss: number of a step, from 0 -> the loss, and what the progress bar says of it.  It draws what it needs from the
    number, so that a resumed training sees what an uninterrupted one would.  after_step(steps done, what the bar says) is
    called before the state is saved.
    """
    parts, optimiser, schedule, steps, checkpoint = run.parts, run.optimiser, run.schedule, run.steps, run.checkpoint
    weights = {f"{part}.{n}": p for part, module in parts.items() for n, p in module.named_parameters() if p.requires_grad}
    stateful: dict[str, Stateful] = {"optimiser": optimiser, "schedule": schedule, **run.also}
    start, saved_at = 0, time.monotonic()
    if checkpoint and (state := checkpoint.load(next(iter(weights.values())).device)):
        start = state["step"]
        with torch.no_grad():
            for name, tensor in weights.items():
                tensor.copy_(state["weights"][name])
        for name, part in stateful.items():
            part.load_state_dict(state[name])
    todo = range(start, steps)
    # closed on any error, so that a message about it starts on a new line
    with tqdm(todo, desc=run.label, initial=start, total=steps, disable=not run.label, mininterval=2) as bar:
        for step in bar:
            loss, says = step_loss(step)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            if run.longest is not None:
                nn.utils.clip_grad_norm_(weights.values(), run.longest)
            optimiser.step()
            schedule.step()
            bar.set_postfix_str(says, refresh=False)
            done = step + 1
            after_step(done, says)
            if checkpoint and checkpoint.due(done, steps, time.monotonic() - saved_at):
                state = {"step": done, "weights": {name: tensor.detach() for name, tensor in weights.items()}}
                checkpoint.save(state | {name: part.state_dict() for name, part in stateful.items()})
                saved_at = time.monotonic()
    if checkpoint and not checkpoint.keep:
        checkpoint.file.unlink(missing_ok=True)
