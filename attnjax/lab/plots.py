"""Plots of experiments as matplotlib figures; the caller writes them.

No window system is needed: figures are made without pyplot and rendered by Agg.
"""

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attnjax.lab.arms import Result, slug
from attnjax.lab.claims import Metrics, interval, mean_and_sd, plus_minus
from attnjax.lab.timing import exponent

# Okabe and Ito's colors, which stay apart for color-blind readers.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")


def of_result(result: Result) -> dict[str, Figure]:
    """The figures of every study: curves and measures of each task, and times against length."""
    figures: dict[str, Figure] = {}
    for task, losses in result.losses.items():
        seen, unit = result.validation.get(task, {}), result.units.get(task, "nats")
        figures[f"loss-{slug(task)}"] = loss_curves(losses, seen, unit=unit)
        prefix = f"{task}: "
        rows = [r for r in result.seeds[0] if r.startswith(prefix)] or list(result.seeds[0])
        figures[f"measures-{slug(task)}"] = differences(result.seeds, rows)
    if result.seconds:
        figures["time"] = time_curves(result.seconds)
    return figures


def loss_curves(
    losses: Mapping[str, Sequence[np.ndarray]],
    validation: Mapping[str, Sequence[np.ndarray]],
    *,
    unit: str = "nats",
) -> Figure:
    """Training and validation loss against step, side by side: the mean and range of the seeds.

    Both map a run's name to one array a seed: of every step, smoothed here, and at even distances.
    """
    panels = {"training loss, smoothed": losses}
    if any(len(x) for each in validation.values() for x in each):
        panels["validation loss"] = validation
    figure = Figure(figsize=(1 + 4.6 * len(panels), 4.0), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    settled = []
    for axes, (title, runs) in zip(grid, panels.items(), strict=True):
        for color, name in zip(_cycle(len(losses)), losses, strict=True):
            curves = np.stack([np.asarray(seed) for seed in runs[name]])
            total = len(losses[name][0])
            steps = np.linspace(total / curves.shape[1], total, curves.shape[1])
            if runs is losses:
                curves = np.stack([_smooth(seed) for seed in curves])
            style = {"color": color, "linewidth": 1.6, "label": name}
            axes.plot(steps, curves.mean(0), **style, marker="." if runs is validation else None)
            if len(curves) > 1:
                axes.fill_between(
                    steps, curves.min(0), curves.max(0), color=color, alpha=0.15, lw=0
                )
            # The fall of the first steps would flatten everything that tells the runs apart.
            settled.append(curves.mean(0)[len(steps) // 10 :])
        axes.set(xlabel="training step", title=title)
        _tidy(axes)
    found = np.concatenate(settled)
    low, high = np.nanmin(found), np.nanmax(found)
    grid[0].set_ylim(low - 0.05 * (high - low) - 1e-6, high + 0.05 * (high - low) + 1e-6)
    grid[0].set_ylabel(unit)
    grid[-1].legend(frameon=False, fontsize=8)
    return figure


def differences(seeds: Sequence[Metrics], rows: Sequence[str]) -> Figure:
    """A panel a measure: each row's difference to the first one, a dot a seed, and its interval.

    The label of the axis has the first row's own value, from which the differences are taken.
    """
    names = list(dict.fromkeys(name for row in rows for name in seeds[0][row]))
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    height = (0.28 * len(rows) + 0.9) * lines
    figure = Figure(figsize=(3.1 * columns + 1.6, height), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(grid, names, strict=False):
        with_it = [row for row in rows if name in seeds[0][row]]
        base = with_it[0]
        for place, (row, color) in enumerate(zip(rows, _cycle(len(rows)), strict=True)):
            if row in with_it:
                apart = [m[row][name] - m[base][name] for m in seeds]
                low, high = interval(apart)
                if math.isfinite(low) and len(apart) > 1:
                    axes.plot([low, high], [place, place], color=color, linewidth=4, alpha=0.35)
                axes.plot(apart, [place] * len(apart), "o", color=color, markersize=3.5)
        own, sd = mean_and_sd([m[base][name] for m in seeds])
        axes.axvline(0, color="#999999", linewidth=0.8, linestyle="--")
        axes.set_yticks(range(len(rows)), [row.partition(": ")[2] or row for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)  # the first on top
        first = base.partition(": ")[2] or base
        axes.set_xlabel(f"{name}: less {first}'s\n({plus_minus(own, sd, len(seeds))})", fontsize=8)
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(labelsize=8)
        _tidy(axes)
    return figure


def time_curves(seconds: Mapping[str, Mapping[int, Sequence[float]]]) -> Figure:
    """Time against length, both axes logarithmic: a panel for rows whose names end alike.

    `seconds` maps a row, such as "full fwd", to length -> the time of each round, of which the
    median is drawn.  The legend has the exponent of T.
    """
    split = {row: row.rpartition(" ") for row in seconds}
    modes = {mode for _, _, mode in split.values()} & {"fwd", "fwd+bwd"}
    panels: dict[str, dict[str, Mapping[int, Sequence[float]]]] = {}
    for row, (name, _, mode) in split.items():
        where, label = (mode, name) if mode in modes else ("", row)
        panels.setdefault(where, {})[label] = seconds[row]
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    figure = Figure(figsize=(1 + 4.7 * len(panels), 4.4), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (mode, rows) in zip(grid, panels.items(), strict=True):
        for name, times in rows.items():
            place = names.index(name)
            each = {T: statistics.median(rounds) for T, rounds in times.items()}
            label = f"{name}  (T^{exponent(each):.2f})" if len(each) > 1 else name
            style = ("-", "--", ":")[place // len(COLORS) % 3]
            color = COLORS[place % len(COLORS)]
            axes.plot(list(each), list(each.values()), style, marker="o", markersize=4,
                      linewidth=1.6, color=color, label=label)  # fmt: skip
        lengths = sorted({T for each in rows.values() for T in each})
        axes.set(xscale="log", yscale="log", title=mode, xlabel="T (tokens)")
        axes.set_xticks(lengths, [f"{T:,}" for T in lengths], fontsize=8, rotation=30)
        axes.minorticks_off()
        _tidy(axes)
        axes.legend(frameon=False, fontsize=8)
    grid[0].set_ylabel("time (s)")
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


def numbers(axes: Axes, shown: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> None:
    """A table of numbers in color; nan is "refused"."""
    # The color tells the rank: one large number would hide how the others differ.
    ranks = np.searchsorted(np.unique(shown[np.isfinite(shown)]), shown)
    colors = np.where(np.isnan(shown), np.nan, ranks)
    axes.imshow(colors, cmap="Blues", aspect="auto", vmax=1.7 * max(1, ranks.max()))
    for i, j in np.ndindex(shown.shape):
        text = "refused" if np.isnan(shown[i, j]) else plus_minus(float(shown[i, j]), 0, 1)
        axes.text(j, i, text, ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(columns)), columns, fontsize=8, rotation=20)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.spines[:].set_visible(False)


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
