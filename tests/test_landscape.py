"""The loss landscape: planes, surfaces and how much of them curves upwards.

Contents
    share_upwards a bowl 1.0, a saddle 0.5, a dome 0.0
    curvatures    exact for quadratics
    plane         unit, orthogonal, downhill
    surface       the loss at the expected places; the scan's own loss at its centre
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import main
from Utils.encoder.corpus import embed_corpus
from Utils.encoder.text_encoder import TextEncoder
from Utils.scan.landscape import curvatures, plane, share_upwards, surface
from Utils.scan.settings import ScanConfig

CENTRE = torch.tensor([[1.0, -2.0, 0.5, 3.0]], dtype=torch.float64)  # (k, d) = (1, 4)
D1, D2 = torch.eye(4, dtype=torch.float64)[:2].unsqueeze(1)  # (1, 4) each


def quadratic(xx: float, yy: float, xy: float = 0.0):
    """A loss around CENTRE with this Hessian in the plane of D1 and D2.  (n, k, d) -> (n,)"""

    def loss(places: Tensor) -> Tensor:
        x, y = (places - CENTRE)[:, 0, :2].unbind(dim=-1)
        return 0.5 * xx * x**2 + 0.5 * yy * y**2 + xy * x * y + 0.3 * x - 0.7 * y + 5

    return loss


def eigenvalues(loss, radius: float = 2.0, points: int = 9) -> Tensor:
    return curvatures(surface(loss, CENTRE, D1, D2, radius, points), 2 * radius / (points - 1))


@pytest.mark.parametrize(
    ("xx", "yy", "share"), [(2.0, 1.0, 1.0), (2.0, -1.0, 0.5), (-2.0, -1.0, 0.0), (2.0, 0.0, 0.5), (0.0, 0.0, 0.0)]
)
def test_a_bowl_has_basin_one_a_saddle_a_half_and_a_dome_none(xx: float, yy: float, share: float):
    assert share_upwards(eigenvalues(quadratic(xx, yy))) == share


def test_the_basin_counts_eigenvalues_above_the_bound():
    values = torch.tensor([[-1.0, 0.0], [1e-7, 1.0], [2.0, 3.0]])
    assert share_upwards(values) == 3 / 6
    assert share_upwards(values, above=1e-8) == 4 / 6
    assert share_upwards(values, above=2.5) == 1 / 6


@pytest.mark.parametrize("hessian", [(2.0, 1.0, 0.0), (1.0, 1.0, 0.5), (-3.0, 2.0, 1.5), (0.0, 0.0, 1.0)])
def test_curvatures_of_a_quadratic_are_exact_everywhere(hessian: tuple[float, float, float]):
    xx, yy, xy = hessian
    expected = torch.linalg.eigvalsh(torch.tensor([[xx, xy], [xy, yy]], dtype=torch.float64))
    found = eigenvalues(quadratic(xx, yy, xy))
    assert found.shape == (7 * 7, 2)
    torch.testing.assert_close(found, expected.expand(49, 2))


@pytest.mark.parametrize("points", [3, 10, 50])
def test_there_are_two_curvatures_at_every_inner_point(points: int):
    assert eigenvalues(quadratic(1.0, 1.0), points=points).shape == ((points - 2) ** 2, 2)


def test_halving_the_spacing_quadruples_curvature():
    values = surface(quadratic(2.0, -1.0, 0.5), CENTRE, D1, D2, 2.0, 9)
    torch.testing.assert_close(curvatures(values, 0.25), 4 * curvatures(values, 0.5))


def test_a_half_bowl_half_dome_has_a_basin_in_between():
    def cubic(places: Tensor) -> Tensor:
        x, y = (places - CENTRE)[:, 0, :2].unbind(dim=-1)
        return x**3 + y**2

    # 8 points lie symmetrically around x = 0 and none on it, so half of the x curvatures (6 x) are positive and all of y's (2)
    assert share_upwards(eigenvalues(cubic, points=8)) == 0.75


@pytest.mark.parametrize("shape", [(1, 32), (3, 32)])
def test_directions_are_unit_orthogonal_and_the_first_goes_downhill(shape: tuple[int, int]):
    gradient = 7 * torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    d1, d2 = plane(gradient, torch.Generator().manual_seed(0))
    assert d1.shape == d2.shape == shape
    torch.testing.assert_close(d1.norm(), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(d2.norm(), torch.ones((), dtype=torch.float64))
    assert abs((d1 * d2).sum()) < 1e-12
    torch.testing.assert_close((d1 * gradient).sum(), -gradient.norm())


def test_the_second_direction_comes_from_the_generator():
    gradient = torch.ones(1, 32)
    first, again, other = (plane(gradient, torch.Generator().manual_seed(seed))[1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_the_surface_is_the_loss_at_every_point_of_the_grid():
    def loss(places: Tensor) -> Tensor:
        return (places * torch.tensor([[1.0, 10.0, 100.0, 1000.0]])).sum(dim=(1, 2)).sin()

    values = surface(loss, CENTRE, D1, D2, radius=3.0, points=5)
    steps = [-3.0, -1.5, 0.0, 1.5, 3.0]
    expected = torch.stack([torch.cat([loss((CENTRE + a * D1 + b * D2)[None]) for b in steps]) for a in steps])
    torch.testing.assert_close(values, expected)
    assert torch.equal(values[2, 2], loss(CENTRE[None])[0])


def test_rows_run_along_the_first_direction_and_columns_along_the_second():
    values = surface(lambda places: (places - CENTRE)[:, 0, 0], CENTRE, D1, D2, radius=1.0, points=3)
    torch.testing.assert_close(values, torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)[:, None].expand(3, 3))


# ---------------------------------------------------------------------------------------------------- the scan's loss
@pytest.fixture
def scan(tiny: TextEncoder, corpus_prompts: list[str]) -> main.Scan:
    cfg = ScanConfig(
        procedure="calibrated", prompts=len(corpus_prompts), fit_fraction=0.6, positions="attended", landscape_points=3
    )
    corpus = embed_corpus(tiny, corpus_prompts, None)
    rows = torch.arange(len(corpus_prompts))
    return main.Scan(tiny, tiny, corpus_prompts, corpus, corpus, rows[:9], rows[9:], cfg, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("positions", ["attended", "all"])
def test_the_objective_at_many_places_is_the_objective_at_each(scan: main.Scan, positions: str):
    scan = replace(scan, cfg=replace(scan.cfg, positions=positions))
    places = torch.randn(4, 1, scan.suspect.width, generator=torch.Generator().manual_seed(2))
    rows = torch.tensor([1, 9, 14])
    together = main.objective(scan, places, rows)[0]
    alone = torch.stack([main.objective(scan, v[None], rows[i : i + 1])[0][0] for v in places for i in range(3)])
    torch.testing.assert_close(together, alone.view(4, 3).mean(dim=1), rtol=1e-5, atol=1e-5)


def test_the_middle_of_the_scans_surface_is_its_loss_at_the_trigger(scan: main.Scan):
    v = 0.1 * torch.randn(1, scan.suspect.width, generator=torch.Generator().manual_seed(2))
    d1, d2 = plane(torch.ones_like(v), scan.generator)
    rows = scan.held_out[:2]
    values = surface(lambda places: main.loss_of_many(scan, rows, places, texts=6), v, d1, d2, radius=1.0, points=5)
    torch.testing.assert_close(values[2, 2], main.objective(scan, v[None], rows)[0][0], rtol=1e-5, atol=1e-5)
    assert values.std() > 1e-3
