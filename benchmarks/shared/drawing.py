"""Plots for the docs: small, and the same file for the same figures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def drawing(file: Path) -> Iterator[Any]:
    """Axes to draw on, which are written to an SVG file."""
    import matplotlib as mpl  # a benchmark without a plot does without it

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "trioreq"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3))
    yield axes
    axes.grid(visible=True, alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
