"""Numbers to figures: one look for all, readable in black and white."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

LOOK = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 150, "savefig.bbox": "tight"}


def _save(figure: Figure, file: Path) -> None:
    # no software name and date in the file: one scan gives one picture
    figure.savefig(file, metadata={"Software": None})


def assimilation_by_layer(curves: dict[str, tuple[Tensor, Tensor]], file: Path) -> None:
    """Mean assimilation after every layer with one standard deviation; curves: name -> (mean (L,), spread (L,))."""
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(4.6, 3))
        axes = figure.subplots()
        styles = zip(("#444444", "#c0392b", "#2471a3"), ("-", "--", ":"), ("o", "s", "^"), strict=True)
        for (name, (mean, spread)), (colour, line, marker) in zip(curves.items(), styles, strict=False):
            layers = np.arange(1, len(mean) + 1)
            axes.plot(layers, mean, line, marker=marker, color=colour, markersize=4, label=name)
            axes.fill_between(layers, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
        axes.set(xlabel="layer", ylabel="assimilation A", ylim=(0, 1.02), xticks=layers)
        axes.legend(frameon=False)
        _save(figure, file)


def loss_landscape(values: Tensor, radius: float, unit: str, file: Path) -> None:
    """The search loss on a plane through the found vector; values (n, n), rows along the negative gradient."""
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(4.2, 3.4))
        axes = figure.subplots()
        steps = np.linspace(-radius, radius, len(values))
        filled = axes.contourf(steps, steps, values.T, levels=24, cmap="Greys_r")
        axes.contour(steps, steps, values.T, levels=12, colors="black", linewidths=0.4)
        axes.plot(0, 0, "x", color="#c0392b", markersize=8, markeredgewidth=2)
        axes.set(xlabel=f"along the negative gradient ({unit})", ylabel=f"random orthogonal direction ({unit})")
        figure.colorbar(filled, ax=axes, label="loss L")
        _save(figure, file)


def hessian_spectrum(eigenvalues: Tensor, share: float, file: Path) -> None:
    """Curvatures over the landscape; eigenvalues (m, 2)."""
    flat = np.sort(eigenvalues.flatten().numpy())
    low, high = np.quantile(flat, [0.01, 0.99])
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(4.6, 3))
        axes = figure.subplots()
        axes.hist(flat.clip(low, high), bins=60, color="#777777", edgecolor="black", linewidth=0.3)
        axes.axvline(0, color="#c0392b", linestyle="--", linewidth=1)
        axes.set(xlabel="Hessian eigenvalue (1 % tails drawn in)", ylabel="count", title=f"{share:.0%} curve upwards")
        _save(figure, file)
