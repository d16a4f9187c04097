"""The picture: how each arm depends on its learning rate, and how far it is from AdamW.

Arms of equal structure share a colour and a marker; the second of them is drawn
dashed and hollow.  The right panel's labels are the key to both panels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from adamw_jax.ablation.statistics import Row
from adamw_jax.ablation.sweep import Runs

# Okabe and Ito's palette, distinguishable with any kind of colour vision, without
# its yellow, which is not seen on white.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


MARKERS = ("o", "s", "^", "D", "v", "P", "p")


INK, FAINT = "#333333", "#BBBBBB"


class Style:
    """Colour by structure, line and marker by place among the arms of that structure."""

    def __init__(self, structure: int, place: int):
        self.colour = COLOURS[structure % len(COLOURS)]
        self.line = {"color": self.colour, "ls": ("-", (0, (4, 2)), (0, (1, 2)))[min(place, 2)]}
        face, edge = (self.colour, "white") if place == 0 else ("white", self.colour)
        self.point = {"marker": MARKERS[structure % len(MARKERS)], "ms": 8, "ls": "", "zorder": 5}
        self.point |= {"mfc": face, "mec": edge, "mew": 1 if place == 0 else 1.6}


def draw(
    title: str,
    rows: Sequence[Row],
    results: Mapping[str, Runs],
    rates: Sequence[float],
    tuning: int,
    groups: Sequence[Sequence[str]],
) -> Figure:
    """Both panels; `savefig(path)` of what is returned writes them.

    Args:
      title: above both.
      rows: the analysis; results, rates, tuning: what it was made from.
      groups: names of the arms of equal structure, together.
    """
    styles = {
        name: Style(structure, place)
        for structure, names in enumerate(groups)
        for place, name in enumerate(names)
    }
    picture = Figure(figsize=(12.5, 5.6), dpi=150, layout="constrained")
    left, right = picture.subplots(1, 2, width_ratios=(1.3, 1))
    best = min(row.loss.mean for row in rows)
    left.set(ylim=(0.7 * best, max(2.5, 2 * best)))  # 2.3 is the loss of guessing a digit
    for row in reversed(rows):  # the baseline comes last, on top
        losses = results[row.arm].test.loss[:, tuning:]
        _draw_losses(left, row, losses, np.asarray(rates), styles[row.arm])
    _dress_losses(left, rates)
    for height, row in enumerate(reversed(rows)):
        _draw_ratio(right, height, row, styles[row.arm])
    _dress_ratios(right, rows, styles)
    picture.suptitle(title, x=0.01, ha="left", fontsize=14, color=INK)
    return picture


def _draw_losses(axes: Axes, row: Row, loss: np.ndarray, rates: np.ndarray, style: Style) -> None:
    """One arm's median and quartiles of loss [rate, seed] over the seeds."""
    ended = np.isfinite(loss).all(axis=1)
    place = {"clip_on": False, "in_layout": False, "transform": axes.get_xaxis_transform()}
    axes.plot(rates[~ended], np.full(sum(~ended), 1.0), "x", color=style.colour, **place)
    rates, loss = rates[ended], loss[ended]
    low, middle, high = np.quantile(loss, (0.25, 0.5, 0.75), axis=1)
    seen = middle < axes.get_ylim()[1]  # the spread of what is off the scale is only clutter
    axes.fill_between(rates, low, high, where=seen, color=style.colour, alpha=0.15, lw=0)
    axes.plot(rates, middle, **style.line, lw=2.4 if row.comparison is None else 1.5)
    axes.plot(rates[rates == row.rate], middle[rates == row.rate], **style.point)


def _dress_losses(axes: Axes, rates: Sequence[float]) -> None:
    axes.set(xscale="log", yscale="log", xlim=(rates[0], rates[-1]))
    axes.set_title("Test loss in nats: median and quartiles over seeds", loc="left", fontsize=11)
    axes.set_xlabel("learning rate   (marker: chosen by validation;  ×: a run diverged)")
    low, high = axes.get_ylim()
    _ticks(axes.yaxis, low, high, (1, 2, 5), "{:g}")
    _ticks(axes.xaxis, rates[0], rates[-1], (1,), "{:g}")
    _plain(axes)


def _draw_ratio(axes: Axes, height: int, row: Row, style: Style) -> None:
    """One arm's paired ratio of losses, with the interval that belongs to its verdict."""
    pair = row.comparison
    if pair is None:
        axes.plot(1, height, **style.point)
    elif np.isfinite(pair.ratio):
        axes.plot([pair.low, pair.high], [height, height], color=style.colour, lw=2)
        axes.plot(pair.ratio, height, **style.point)
    axes.text(
        1.02,
        height,
        row.verdict,
        transform=axes.get_yaxis_transform(),
        va="center_baseline",
        color=INK,
    )


def _dress_ratios(axes: Axes, rows: Sequence[Row], styles: Mapping[str, Style]) -> None:
    axes.axvline(1, color=INK, lw=0.9, zorder=0)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [row.arm for row in reversed(rows)])
    for label, row in zip(axes.get_yticklabels(), reversed(rows), strict=True):
        label.set_color(styles[row.arm].colour)
    low, high = axes.get_xlim()
    low, high = min(low, 0.8), max(high, 1.25)
    axes.set(xlim=(low, high), ylim=(-0.6, len(rows) - 0.4))
    axes.set_title("Paired with AdamW, Holm-corrected intervals", loc="left", fontsize=11)
    axes.set_xlabel("better  ←  test loss / AdamW's test loss  →  worse")
    _ticks(axes.xaxis, low, high, (1, 2, 5) if high / low > 4 else (1, 1.5, 0.5, 0.8), "×{:g}")
    _plain(axes)
    axes.tick_params(axis="y", length=0)


def _ticks(axis: Any, low: float, high: float, digits: Sequence[float], form: str) -> None:
    """Few ticks with plain numbers on a logarithmic axis; over many decades only powers."""
    powers = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    if len(powers) > 5:
        digits, powers = (1,), powers[powers % (len(powers) // 8 + 1) == 0]
    ticks = np.outer(10.0**powers, digits).ravel()
    axis.set_major_locator(FixedLocator(np.unique(ticks[(ticks >= low) & (ticks <= high)])))
    axis.set_major_formatter(FuncFormatter(lambda x, _: form.format(float(f"{x:.6g}"))))
    axis.set_minor_locator(FixedLocator([]))
    axis.set_minor_formatter(NullFormatter())


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(color=FAINT)
    axes.grid(color="#EEEEEE", lw=0.8)
    axes.set_axisbelow(True)
