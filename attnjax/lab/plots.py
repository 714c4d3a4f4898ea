"""Plots of experiments as matplotlib figures; the caller writes them.

No window system is needed: figures are made without pyplot and rendered by Agg.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attnjax.lab.claims import Metrics, mean_and_sd
from attnjax.lab.timing import exponent

# Okabe and Ito's colors, which stay apart for color-blind readers.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")


def loss_curves(
    losses: Mapping[str, Sequence[np.ndarray]], *, unit: str = "nats per byte"
) -> Figure:
    """Loss against step: the mean over seeds of the smoothed loss, and the range of the seeds.

    `losses` maps a run's name to one array (steps,) a seed.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    finals = []
    for color, (name, seeds) in zip(_cycle(len(losses)), losses.items(), strict=True):
        smooth = np.stack([_smooth(np.asarray(seed)) for seed in seeds])
        steps = np.arange(1, smooth.shape[1] + 1)
        axes.plot(steps, smooth.mean(0), color=color, linewidth=1.6, label=name)
        if len(seeds) > 1:
            axes.fill_between(steps, smooth.min(0), smooth.max(0), color=color, alpha=0.15, lw=0)
        finals.append(smooth.mean(0))
    _tidy(axes)
    longest = max(len(curve) for curve in finals)
    axes.set_xlim(1, max(2, longest))
    # The fall of the first steps would flatten everything that tells the runs apart.
    settled = np.concatenate([curve[len(curve) // 20 :] for curve in finals])
    low, high = settled.min(), settled.max()
    axes.set_ylim(low - 0.05 * (high - low) - 1e-6, high + 0.05 * (high - low) + 1e-6)
    axes.set_xlabel("training step")
    axes.set_ylabel(f"training loss ({unit})")
    axes.legend(frameon=False, fontsize=9)
    return figure


def time_curves(
    seconds: Mapping[tuple[str, str], Mapping[int, float]], *, dashed: Sequence[str] = ()
) -> Figure:
    """Time against length, both axes logarithmic: a panel a mode.

    `seconds` maps (name, mode) to length -> seconds.  Names that begin as one of `dashed` get
    dashed lines; the legend has the exponent of T.
    """
    names = list(dict.fromkeys(name for name, _ in seconds))
    modes = list(dict.fromkeys(mode for _, mode in seconds))
    figure = Figure(figsize=(1 + 4.7 * len(modes), 4.4), layout="constrained")
    panels = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    for axes, mode in zip(panels, modes, strict=True):
        for name in names:
            each = dict(seconds.get((name, mode), {}))
            if not each:
                continue
            style = "--" if name.startswith(tuple(dashed)) and dashed else "-"
            label = f"{name}  (T^{exponent(each):.2f})" if len(each) > 1 else name
            axes.plot(list(each), list(each.values()), style, marker="o", markersize=4,
                      linewidth=1.6, color=COLORS[names.index(name) % len(COLORS)],
                      label=label)  # fmt: skip
        lengths = sorted({T for each in seconds.values() for T in each})
        axes.set(xscale="log", yscale="log", title=mode, xlabel="T (tokens)")
        axes.set_xticks(lengths, [f"{T:,}" for T in lengths], fontsize=8, rotation=30)
        axes.minorticks_off()
        axes.grid(True, color="#e6e6e6", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("time (s)")
    return figure


def attention_maps(maps: Mapping[str, np.ndarray], *, title: str = "") -> Figure:
    """A row of heads for each name: `maps` maps a name to (heads, T, S) weights >= 0.

    Each row has its own color scale, since weights that do not sum to one differ in size; the
    square root keeps small weights visible.
    """
    heads = max(len(grid) for grid in maps.values())
    figure = Figure(figsize=(1.9 * heads + 1.2, 1.9 * len(maps) + 0.7), layout="constrained")
    grid = figure.subplots(len(maps), heads, squeeze=False)
    for place, (name, weights) in enumerate(maps.items()):
        row = grid[place]
        weights = np.sqrt(np.maximum(np.asarray(weights, np.float32), 0))
        top = max(float(weights.max()), 1e-6)
        for head, axes in enumerate(row):
            axes.set_xticks([])
            axes.set_yticks([])
            if head < len(weights):
                axes.imshow(weights[head], cmap="magma", vmin=0, vmax=top, aspect="equal")
            else:
                axes.set_axis_off()
            if place == 0:
                axes.set_title(f"head {head}", fontsize=9)
            if place == len(maps) - 1:
                axes.set_xlabel("key", fontsize=8)
        row[0].set_ylabel(f"{name}\nquery", fontsize=9)
        bar = figure.colorbar(row[0].images[0], ax=list(row), shrink=0.85, pad=0.01, aspect=14)
        ticks = np.linspace(0, top, 3)
        bar.set_ticks(ticks.tolist(), labels=[f"{tick**2:.2g}" for tick in ticks])
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_visible(False)
    figure.suptitle(title or "attention weights", fontsize=11)
    return figure


def bars(seeds: Sequence[Metrics], panels: Mapping[str, str]) -> Figure:
    """A panel of horizontal bars for each measure: mean over seeds, with the sd as a whisker.

    `panels` maps a measure's name to the label of its axis, with its unit.  Every panel has a place
    for every variant, empty where that one has no such measure.
    """
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(3.1 * columns + 1.2, 2.7 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    firsts = grid[::columns]
    names = [name for name, values in seeds[0].items() if panels.keys() & values]
    for axes, (measure, label) in zip(grid, panels.items(), strict=False):
        found = [
            mean_and_sd([metrics[name].get(measure, math.nan) for metrics in seeds])
            for name in names
        ]
        places, (means, sds) = np.arange(len(names)), np.array(found).T
        axes.barh(places, means, xerr=sds if len(seeds) > 1 else None, color=_cycle(len(names)),
                  height=0.68, error_kw={"elinewidth": 1, "ecolor": "#444444"})  # fmt: skip
        axes.set_yticks(places, names if axes in firsts else [""] * len(names), fontsize=9)
        axes.set_ylim(len(names) - 0.4, -0.6)  # the first on top
        ends = np.maximum(means + sds, 0)
        for place in np.flatnonzero(np.isfinite(means)):
            axes.annotate(f"{means[place]:.3g}", (ends[place], place), xytext=(4, 0),
                          textcoords="offset points", va="center", fontsize=8)  # fmt: skip
        axes.set_xlim(min(0, 1.2 * np.nanmin(means)), 1.25 * np.nanmax(ends) or 1)
        axes.set_xlabel(label, fontsize=9)
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(labelsize=8)
        _tidy(axes)
        axes.grid(False, axis="y")
    return figure


def _smooth(values: np.ndarray) -> np.ndarray:
    """A mean over the last thirtieth of the steps; the first entries average what there is."""
    size = max(1, len(values) // 30)
    total = np.cumsum(np.pad(values.astype(np.float64), (size, 0)))
    counts = np.minimum(np.arange(1, len(values) + 1), size)
    return (total[size:] - total[:-size]) / counts


def _cycle(count: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(count)]


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
