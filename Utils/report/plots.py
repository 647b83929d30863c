"""Numbers to figures: one look for all, readable in black and white, each as PNG and as PDF."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

LOOK = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.7, "figure.dpi": 150,
    "legend.frameon": False, "lines.linewidth": 1.4, "pdf.fonttype": 42, "text.parse_math": False,
}  # fmt: skip
BENIGN, FOUND, ANCHOR = "benign prompts", "with the found vector", "the same in the anchor"
"""What most figures compare; each has its style wherever it is drawn."""
RED = "#b03a2e"
STYLES = (("#444444", "-", "o"), (RED, "--", "s"), ("#2471a3", ":", "^"), ("#7d6608", "-.", "D"))
"""Colours of different darkness; every line has a style and a marker of its own besides."""
HATCHES = ("", "////", "....", "++")


def canvas(width: float, height: float, columns: int = 1, **settings: object) -> tuple[Figure, np.ndarray]:
    """An empty figure and its axes, (columns,)."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False, **settings)[0]


def save(figure: Figure, file: Path) -> None:
    """Write <file>.png and <file>.pdf, without software names and dates: one scan gives one picture."""
    figure.savefig(file.with_suffix(".png"), metadata={"Software": None})
    figure.set_layout_engine("none")  # everything stays where it was put: laying it out takes as long as drawing it
    figure.savefig(file.with_suffix(".pdf"), metadata={"Creator": None, "Producer": None, "CreationDate": None})


def save_small(figure: Figure, file: Path) -> None:
    """Write <file>.png alone, in few colours: what is committed stays with every clone."""
    drawn = BytesIO()
    figure.savefig(drawn, metadata={"Software": None})
    Image.open(drawn).convert("RGB").quantize(COLOURS).save(file.with_suffix(".png"), optimize=True)


COLOURS = 32
"""Of a committed figure."""


def styles(names: Iterable[str]) -> list[tuple[str, str, str]]:
    """Colour, line and marker of each curve: its own where it is one of the usual three, else by order."""
    usual = dict(zip((BENIGN, FOUND, ANCHOR), STYLES, strict=False))
    return [usual.get(name, style) for name, style in zip(names, STYLES, strict=False)]


def lines(axes: matplotlib.axes.Axes, x: np.ndarray, curves: dict[str, tuple[Tensor, Tensor | None]], every: int = 1) -> None:
    """Curves with their spread, name -> (mean (n,), spread (n,) or None)."""
    for (name, (mean, spread)), (colour, line, marker) in zip(curves.items(), styles(curves), strict=True):
        axes.plot(x, mean, line, marker=marker, markevery=every, color=colour, markersize=4, label=name)
        if spread is not None:
            axes.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
    axes.legend()


def bars(axes: matplotlib.axes.Axes, groups: dict[str, Tensor]) -> None:
    """Histograms of values between 0 and 1, told apart by hatching; name -> (n,)."""
    for (name, values), (colour, line, _), hatch in zip(groups.items(), styles(groups), HATCHES, strict=False):
        axes.hist(
            values.numpy(), bins=np.linspace(0, 1, 41), density=True, alpha=0.45, color=colour, hatch=hatch,
            edgecolor=colour, linestyle=line, label=name,
        )  # fmt: skip


def by_layer(curves: dict[str, tuple[Tensor, Tensor]], label: str, file: Path) -> None:
    """A measure between 0 and 1 after every layer with one standard deviation; name -> (mean (L,), spread (L,)).

    A name without values is shown in the legend only.
    """
    with matplotlib.rc_context(LOOK):
        figure, (axes,) = canvas(4.6, 3)
        layers = np.arange(1, len(next(iter(curves.values()))[0]) + 1)
        nothing = np.full(len(layers), np.nan), None
        lines(axes, layers, {name: curve if len(curve[0]) else nothing for name, curve in curves.items()})
        axes.set(xlabel="layer", ylabel=label, ylim=(0, 1.02), xticks=layers)
        save(figure, file)


def histogram(groups: dict[str, Tensor], label: str, file: Path) -> None:
    """Distributions of a measure between 0 and 1; name -> (n,) values."""
    with matplotlib.rc_context(LOOK):
        figure, (axes,) = canvas(4.6, 3)
        bars(axes, groups)
        axes.set(xlabel=label, ylabel="density of prompts", xlim=(0, 1))
        axes.legend()
        save(figure, file)


def histograms_by_layer(groups: dict[str, Tensor], label: str, file: Path, columns: int = 3) -> None:
    """The same after every layer, one panel each; name -> (n, L) values."""
    depth = next(iter(groups.values())).shape[1]
    rows = -(-depth // columns)
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(2.6 * columns, 1.8 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, squeeze=False).flatten()
        for layer, axes in enumerate(panels[:depth]):
            bars(axes, {name: values[:, layer] for name, values in groups.items()})
            axes.set(xlim=(0, 1), yticks=[])
            axes.set_title(f"layer {layer + 1}", fontsize=9)
        for axes in panels[depth:]:
            axes.set_visible(False)
        figure.supxlabel(label, fontsize=9)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(groups))
        save(figure, file)


def shares(x: list[float], curves: dict[str, Tensor], label: str, file: Path, logarithmic: bool = False) -> None:
    """Shares of prompts against something; name -> (len(x),); a name without values is shown in the legend only."""
    with matplotlib.rc_context(LOOK):
        figure, (axes,) = canvas(4.6, 3)
        lines(axes, np.array(x), {n: (c.numpy() if len(c) else np.full(len(x), np.nan), None) for n, c in curves.items()})
        axes.set(xlabel=label, ylabel="share of prompts captured", ylim=(-0.03, 1.03))
        if logarithmic:
            axes.set_xscale("log", base=2)
            axes.set_xticks(x, [f"{value:g}" for value in x])
        save(figure, file)


def attention_map(maps: dict[str, Tensor], tokens: list[str], file: Path) -> None:
    """Where each token of one prompt looks in one layer; name -> (t, t), rows look at columns."""
    side = 0.17 * len(tokens) + 1
    with matplotlib.rc_context(LOOK | {"font.size": 7}):
        figure, panels = canvas(side * len(maps) + 0.6, side, len(maps))
        for axes, (name, values) in zip(panels, maps.items(), strict=True):
            shown = axes.imshow(values.numpy(), cmap="Greys", vmin=0, vmax=1)
            axes.set_title(name, fontsize=9)
            axes.set_xticks(range(len(tokens)), tokens, rotation=90)
            axes.set_yticks(range(len(tokens)), tokens)
            axes.set(xlabel="looked at")
            axes.spines[:].set_visible(False)
        panels[0].set_ylabel("looking")
        figure.colorbar(shown, ax=panels, label="attention, mean over heads", shrink=0.8)
        save(figure, file)


def loss_landscape(values: Tensor, radius: float, unit: str, file: Path) -> None:
    """The search loss on a plane through the found vector; values (n, n), rows along the negative gradient."""
    with matplotlib.rc_context(LOOK):
        figure, (axes,) = canvas(4.4, 3.4)
        steps = np.linspace(-radius, radius, len(values))
        filled = axes.contourf(steps, steps, values.T, levels=24, cmap="Greys_r")
        axes.contour(steps, steps, values.T, levels=12, colors="black", linewidths=0.4)
        axes.plot(0, 0, "X", color=RED, markeredgecolor="white", markersize=10, label="v")
        axes.set(xlabel=f"along the negative gradient ({unit})", ylabel=f"random orthogonal direction ({unit})")
        figure.colorbar(filled, ax=axes, label="loss L")
        axes.legend(loc="upper right", frameon=True)
        save(figure, file)


def counted(eigenvalues: Tensor, bins: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """A histogram of curvatures (m, 2), the outermost 1 % of either side drawn in.  -> counts (bins,), edges (bins + 1,)"""
    flat = np.sort(eigenvalues.flatten().numpy())
    return np.histogram(flat.clip(*np.quantile(flat, [0.01, 0.99])), bins)


def hessian_spectrum(eigenvalues: Tensor, share: float, file: Path) -> None:
    """Curvatures over the landscape; eigenvalues (m, 2)."""
    counts, edges = counted(eigenvalues)
    with matplotlib.rc_context(LOOK):
        figure, (axes,) = canvas(4.6, 3)
        axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color="#8a8a8a", edgecolor="black", linewidth=0.3)
        axes.axvline(0, color=RED, linestyle="--", linewidth=1.2)
        axes.set(xlabel="Hessian eigenvalue (1 % tails drawn in)", ylabel="count", title=f"{share:.0%} curve upwards")
        save(figure, file)


def search_curve(parts: list[list[dict[str, float]]], file: Path) -> None:
    """The loss of the best start and its terms, step by step; one list a search, side by side."""
    with matplotlib.rc_context(LOOK):
        figure, panels = canvas(3.4 * len(parts) + 1.2, 3, len(parts), sharey=True)
        for axes, steps, number in zip(panels, parts, range(1, len(parts) + 1), strict=True):
            names = [name for name in steps[0] if name != "step"]
            curves = {TERMS.get(name, name): (np.array([s[name] for s in steps]), None) for name in names}
            lines(axes, np.array([s["step"] for s in steps]), curves, every=max(1, len(steps) // 12))
            axes.set(xlabel="step", title=f"search {number}" if len(parts) > 1 else "")
        panels[0].set_ylabel("loss and its terms")
        save(figure, file)


TERMS = {
    "loss": "loss L", "assimilation": "assimilation A", "clean": "cos to the clean features", "anchor": "cos to the anchor",
    "string": "cos of the way to the string's",
}  # fmt: skip
