"""The pictures of a report: samples, closest pairs, distributions."""

import numpy as np
from matplotlib.figure import Figure

from ..pictures import contact_sheet
from .anatomy import MEASURES

GRID_SIDE = 6  # images a row, and rows
GENERATED, TRAINING, HELD_OUT = "#d1495b", "#00798c", "#5c6370"


def image_grid(sets: dict[str, np.ndarray]) -> Figure:
    """Random images of each set (N, H, W) uint8, under its title."""
    rng = np.random.default_rng(0)
    figure = Figure(figsize=(7 * len(sets), 7.5), layout="constrained")
    for axes, (title, images) in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets.items(), strict=True):
        chosen = images[rng.permutation(len(images))[: GRID_SIDE**2]]
        axes.imshow(contact_sheet(chosen, GRID_SIDE), cmap="gray", vmin=0, vmax=255)
        axes.set_title(title, fontsize=14, pad=8)
        axes.axis("off")
    return figure


def image_rows(rows: dict[str, np.ndarray], notes: dict[str, list[str]] | None = None) -> Figure:
    """Rows of images (n, H, W) uint8 by their title, with a note under each image of a row in `notes`."""
    notes = notes or {}
    columns = len(next(iter(rows.values())))
    figure = Figure(figsize=(1.75 * columns, 2.0 * len(rows)), layout="constrained")
    for axes_row, (title, images) in zip(figure.subplots(len(rows), columns), rows.items(), strict=True):
        for axes, image in zip(axes_row, images, strict=True):
            axes.imshow(image, cmap="gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        for axes, note in zip(axes_row, notes.get(title, []), strict=False):
            axes.set_xlabel(note, fontsize=10)
        axes_row[0].set_ylabel(title, fontsize=11)
    return figure


def distance_plot(spaces: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Distributions of nearest-neighbour distances, a panel for each space, a line for each pair of sets."""
    figure = Figure(figsize=(6 * len(spaces), 4), layout="constrained")
    for axes, (space, sets) in zip(figure.subplots(1, len(spaces), squeeze=False)[0], spaces.items(), strict=True):
        edges = np.histogram_bin_edges(np.concatenate(list(sets.values())), 50)
        for (label, distances), colour in zip(sets.items(), (TRAINING, GENERATED, HELD_OUT), strict=True):
            axes.hist(distances, edges, density=True, histtype="step", linewidth=1.8, color=colour, label=label)
        axes.set(xlabel=f"distance to the nearest image ({space})", ylabel="density")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return figure


def anatomy_plot(sets: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Distributions of the anatomical measures, a panel for each; of the three sets the last is the reference."""
    figure = Figure(figsize=(12, 6.6), layout="constrained")
    styles = (
        {"histtype": "step", "linewidth": 2, "color": GENERATED, "zorder": 3},
        {"histtype": "step", "linewidth": 1.4, "color": TRAINING, "zorder": 2},
        {"histtype": "stepfilled", "color": HELD_OUT, "alpha": 0.3, "zorder": 1},
    )
    for axes, (measure, unit) in zip(figure.subplots(2, 2).flat, MEASURES.items(), strict=True):
        everything = np.concatenate([measured[measure] for measured in sets.values()])
        edges = np.linspace(*np.quantile(everything, (0.002, 0.998)), 31)
        for (label, measured), style in zip(sets.items(), styles, strict=True):
            axes.hist(measured[measure], edges, density=True, label=label, **style)
        axes.set(xlabel=unit, ylabel="density")
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure
