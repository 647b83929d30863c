"""The training loop that everything is made with: checkpoints, what an interrupted run goes on from, what is asked when.

Contents
    Checkpoint   half a file and another run's are not taken; when a state is due
    identity     everything that decides a run
    train        an interrupted run ends as an uninterrupted one, with its schedule, its moments and what else has a state
"""

import copy
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from Utils.encoder.text_encoder import TextEncoder
from Utils.encoder.training import Checkpoint, Training, identity, train
from Utils.making.finetuning import FinetuneConfig

SHORT = FinetuneConfig(lr=1e-3, batch=4, steps=6)


# --------------------------------------------------------------------------------------------------------- Checkpoint
def test_a_checkpoint_of_another_run_or_half_a_file_is_not_taken(tmp_path: Path):
    file = tmp_path / "run.checkpoint"
    Checkpoint(file, "one").save({"step": 3})
    assert Checkpoint(file, "one").load(torch.device("cpu"))["step"] == 3
    assert Checkpoint(file, "another").load(torch.device("cpu")) is None
    whole = file.read_bytes()
    for broken in (whole[:100], b"", b"not a checkpoint"):
        file.write_bytes(broken)
        assert Checkpoint(file, "one").load(torch.device("cpu")) is None
    torch.save([3], file)
    assert Checkpoint(file, "one").load(torch.device("cpu")) is None
    file.unlink()
    assert Checkpoint(file, "one").load(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("done", "waited", "keep", "due"),
    [(3, 9.0, True, False), (4, 9.0, True, True), (4, 1.0, True, False), (8, 0.0, True, True), (8, 9.0, False, False)],
)
def test_a_state_is_due_after_so_many_steps_and_seconds_and_at_the_end_if_it_stays(
    done: int, waited: float, keep: bool, due: bool, tmp_path: Path
):
    assert Checkpoint(tmp_path / "x", "one", every=4, pause=2.0, keep=keep).due(done, 8, waited) is due


# ----------------------------------------------------------------------------------------------------------- identity
def test_everything_that_decides_a_run_is_in_its_identity(tiny: TextEncoder):
    other = copy.deepcopy(tiny)
    other.sha256 = "another"
    runs = [(SHORT, tiny, "a"), (replace(SHORT, seed=1), tiny, "a"), (SHORT, other, "a"), (SHORT, tiny, "b")]
    assert len({identity(*run) for run in runs}) == 4
    assert identity(*runs[0]) == identity(*runs[0])


# -------------------------------------------------------------------------------------------------------------- train
def trained(checkpoint: Checkpoint | None = None, stop: int = -1) -> tuple[list[Tensor], list[int]]:
    """A one-cycle training of ten steps with clipped gradients and a running mean.  -> weights and their mean, steps asked"""
    module, asked = nn.Linear(3, 2), []
    with torch.no_grad():
        for place, tensor in enumerate(module.parameters()):
            tensor.copy_(torch.linspace(-1, 1, tensor.numel()).view_as(tensor) + place)
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, total_steps=11)
    ema = EMAModel(module.parameters(), decay=0.5)

    def step_loss(step: int) -> tuple[Tensor, str]:
        asked.append(step)
        if step == stop:
            raise KeyboardInterrupt
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        return module(x).square().sum(), ""

    def after_step(*_: object) -> None:
        ema.step(module.parameters())

    with suppress(KeyboardInterrupt):
        run = Training({"module": module}, optimiser, schedule, 10, "", checkpoint, {"ema": ema}, longest=1.0)
        train(run, step_loss, after_step)
    return [*(tensor.detach() for tensor in module.parameters()), *ema.shadow_params], asked


@pytest.mark.parametrize("keep", [True, False])
def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tmp_path: Path, keep: bool):
    whole, _ = trained()
    checkpoint = Checkpoint(tmp_path / "work" / "run.pt", "one", every=4, keep=keep)
    trained(checkpoint, stop=7)
    assert [file.name for file in checkpoint.file.parent.iterdir()] == ["run.pt"]
    resumed, asked = trained(checkpoint)
    assert asked == [4, 5, 6, 7, 8, 9]
    assert all(torch.equal(a, b) for a, b in zip(resumed, whole, strict=True))
    assert checkpoint.file.exists() is keep


def test_a_finished_training_is_not_made_again(tmp_path: Path):
    checkpoint = Checkpoint(tmp_path / "run.pt", "one")
    first, _ = trained(checkpoint)
    again, asked = trained(checkpoint)
    assert asked == []
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_what_is_frozen_neither_moves_nor_is_kept(tmp_path: Path):
    module = nn.Linear(2, 2)
    module.weight.requires_grad_(False)
    before, optimiser = module.weight.clone(), torch.optim.SGD([module.bias], lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimiser)
    checkpoint = Checkpoint(tmp_path / "run.pt", "one")
    run = Training({"m": module}, optimiser, schedule, 2, checkpoint=checkpoint)
    train(run, lambda _: (module(torch.ones(1, 2)).sum(), ""))
    assert torch.equal(module.weight, before)
    assert list(checkpoint.load(torch.device("cpu"))["weights"]) == ["m.bias"]
