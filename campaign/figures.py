"""Pictures of a campaign: the map of targets and achievements, depictions, the overview.

All drawing goes through Matplotlib figures without a window and RDKit's SVG drawer; SVG text stays
text, ids come from a fixed salt and no date is written, so equal data give equal files.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from driftworks.campaign.spec import Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rdkit.Chem import Mol

__all__ = ["Achieved", "Card", "depiction", "overview", "symbol", "target_map", "targets_svg"]

_INK, _GREY, _BLUE, _ORANGE = "#1f2937", "#c3c9d2", "#2563eb", "#ea580c"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "driftworks",
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": _INK,
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
}

_LEGEND: dict[str, Any] = {
    "fontsize": 8,
    "loc": "best",
    "facecolor": "white",
    "framealpha": 0.85,
    "edgecolor": "none",
}
_DIAMOND: dict[str, Any] = {
    "s": 42,
    "marker": "D",
    "c": _ORANGE,
    "ec": "white",
    "lw": 0.8,
    "zorder": 4,
    "label": "DFT",
}

#: Height of a molecule's cell over its width in the overview.
_SHAPE = 0.95

#: Discs that make one shaded ball.
_SHADES = 8

#: Element colours after Corey, Pauling and Koltun, toned for white paper.
_COLOURS = {
    1: "#f3f4f6",
    5: "#f2b8a0",
    6: "#4b5563",
    7: "#3b6fe0",
    8: "#dc3d32",
    9: "#43b85c",
    15: "#e08a1e",
    16: "#e3c02b",
    17: "#2fa84f",
    35: "#8f3b2c",
    53: "#7a3fa0",
}


def symbol(unit: str) -> str:
    """A unit as it is printed: "angstrom^2" is "Å²"."""
    for word, sign in (("angstrom", "Å"), ("debye", "D"), ("^2", "²"), ("^3", "³")):
        unit = unit.replace(word, sign)
    return unit


@dataclass(frozen=True, eq=False)
class Achieved:
    """One target and what came of it.

    `values` (M,) of all candidates by the oracle that counts, `chosen` (M,) bool: in the library,
    `validated` (M,) the DFT values, NaN where there are none.
    """

    name: str
    unit: str
    oracle: str
    target: Target
    values: NDArray[np.float64]
    chosen: NDArray[np.bool_]
    validated: NDArray[np.float64]

    @property
    def label(self) -> str:
        return f"{self.name} [{symbol(self.unit)}]" if self.unit else self.name


@dataclass(frozen=True, eq=False)
class Card:
    """One molecule of the overview: arrays of N atoms and E bonds, and a caption."""

    numbers: NDArray[np.uint8]
    positions: NDArray[np.float32]
    bonds: NDArray[np.int16]
    caption: str


def depiction(mol: Mol, size: tuple[int, int] = (240, 150)) -> str:
    """The molecule's 2D structure as an SVG element without background or XML header."""
    from rdkit import Chem
    from rdkit.Chem import rdDepictor
    from rdkit.Chem.Draw import rdMolDraw2D

    flat = Chem.RemoveHs(mol)
    for name in list(flat.GetPropNames()):
        flat.ClearProp(name)
    rdDepictor.Compute2DCoords(flat)
    drawer = rdMolDraw2D.MolDraw2DSVG(*size)
    options: Any = drawer.drawOptions()
    options.clearBackground = False
    options.padding = 0.08
    options.fixedBondLength = 32
    rdMolDraw2D.PrepareAndDrawMolecule(drawer, flat)
    drawer.FinishDrawing()
    text = drawer.GetDrawingText()
    return text[text.index("<svg") :]


def target_map(axes: Axes, x: Achieved, y: Achieved) -> None:
    """Candidates in the plane of two targets; lines lead from an estimate to its DFT value."""
    from matplotlib.patches import Ellipse, Rectangle

    rest = ~x.chosen
    if rest.any():
        axes.scatter(x.values[rest], y.values[rest], s=14, c=_GREY, lw=0, label="other candidates")
    axes.scatter(
        x.values[x.chosen],
        y.values[x.chosen],
        s=20,
        c=_BLUE,
        lw=0,
        alpha=0.75,
        label=_by("library", x, y),
    )
    # A property that DFT does not give keeps its estimate on the way to the validated point.
    at = [np.where(np.isnan(a.validated), a.values, a.validated) for a in (x, y)]
    known = np.flatnonzero(~np.isnan(x.validated) | ~np.isnan(y.validated))
    for i in known:
        axes.plot(
            [x.values[i], at[0][i]], [y.values[i], at[1][i]], c=_ORANGE, lw=1, zorder=3
        )
    if len(known):
        axes.scatter(at[0][known], at[1][known], **_DIAMOND)
    ends = [_ends(x), _ends(y)]
    if all(e is not None for e in ends):
        (x0, x1), (y0, y1) = ends  # type: ignore[misc]
        boxed = x.target.range is not None or y.target.range is not None
        look: dict[str, Any] = {"fc": "none", "ec": _INK, "ls": (0, (4, 3)), "lw": 1.1, "zorder": 5}
        if boxed:
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, **look))
        else:
            middle = ((x0 + x1) / 2, (y0 + y1) / 2)
            axes.add_patch(Ellipse(middle, x1 - x0, y1 - y0, **look))
            axes.plot(*middle, marker="+", ms=13, mew=1.6, c=_INK, ls="none", zorder=6)
        axes.plot([], [], c=_INK, ls=(0, (4, 3)), lw=1.1, label="target ± tolerance")
    axes.set_xlabel(x.label)
    axes.set_ylabel(y.label)
    axes.legend(**_LEGEND)


def _histogram(axes: Axes, a: Achieved) -> None:
    from matplotlib.ticker import MaxNLocator

    low, high = np.nanmin(a.values), np.nanmax(a.values)
    bins = np.linspace(low, high if high > low else low + 1.0, 25).tolist()
    axes.hist(a.values, bins=bins, color=_GREY, label=f"candidates ({a.oracle})")
    axes.hist(a.values[a.chosen], bins=bins, color=_BLUE, alpha=0.75, label="library")
    ends = _ends(a)
    if ends is not None:
        axes.axvspan(*ends, color=_INK, alpha=0.08, lw=0)
    if a.target.value is not None:
        axes.axvline(a.target.value, c=_INK, lw=1.3, label="target")
    known = a.validated[~np.isnan(a.validated)]
    if len(known):
        height = np.full(len(known), axes.get_ylim()[1] * 0.04)
        axes.scatter(known, height, clip_on=False, **_DIAMOND)
    axes.set_xlabel(a.label)
    axes.set_ylabel("molecules")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(**_LEGEND)


def _ends(a: Achieved) -> tuple[float, float] | None:
    """The interval in which a value is no more than one tolerance off, None for a goal."""
    if a.target.value is not None:
        return a.target.value - a.target.width, a.target.value + a.target.width
    return a.target.range


def _by(what: str, *achieved: Achieved) -> str:
    return f"{what} ({', '.join(dict.fromkeys(a.oracle for a in achieved))})"


def targets_svg(achieved: Sequence[Achieved]) -> str:
    """Target versus achieved: the plane of the first two targets, and every target's histogram.

    Empty where there is nothing to draw.
    """
    shown = [a for a in achieved if np.isfinite(a.values).any()]
    if not shown:
        return ""
    plane = len(shown) >= 2
    panels = len(shown) + plane
    columns = min(panels, 3)
    rows = -(-panels // columns)
    with _drawing():
        figure = _figure(4.2 * columns, 3.5 * rows)
        axes = [figure.add_subplot(rows, columns, k + 1) for k in range(panels)]
        if plane:
            target_map(axes[0], shown[0], shown[1])
        for ax, a in zip(axes[plane:], shown, strict=True):
            _histogram(ax, a)
        figure.tight_layout()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def overview(title: str, line: str, cards: Sequence[Card], achieved: Sequence[Achieved]) -> bytes:
    """One PNG for the campaign: its best molecules in 3D beside target versus achieved."""
    shown = [a for a in achieved if np.isfinite(a.values).any()]
    with _drawing():
        figure = _figure(11.0 if shown else 6.5, 5.2)
        figure.text(0.02, 0.95, title, size=15, weight="bold", color=_INK, va="center")
        figure.text(0.02, 0.895, line, size=9.5, color="#4b5563", va="center")
        right = 0.56 if shown else 0.98
        columns, rows = 3, 2
        for k, card in enumerate(cards[: columns * rows]):
            wide, high = (right - 0.02) / columns, 0.84 / rows
            left, low = 0.02 + (k % columns) * wide, 0.01 + (rows - 1 - k // columns) * high
            axes = figure.add_axes((left, low + 0.15 * high, wide * 0.98, high * 0.84))
            _ball_and_stick(axes, card)
            figure.text(
                left + wide / 2,
                low + 0.07 * high,
                card.caption,
                size=7.8,
                ha="center",
                va="center",
                color=_INK,
            )
        if not cards:
            figure.text(0.05, 0.5, "no molecule came through", size=12, color="#4b5563")
        if len(shown) >= 2:
            target_map(figure.add_axes((0.65, 0.12, 0.33, 0.72)), shown[0], shown[1])
        elif shown:
            _histogram(figure.add_axes((0.65, 0.12, 0.33, 0.72)), shown[0])
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()


def _ball_and_stick(axes: Axes, card: Card) -> None:
    """Balls and sticks, far ones first, seen along the molecule's thinnest direction."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Circle
    from rdkit.Chem import GetPeriodicTable

    axes.set_axis_off()
    axes.set_aspect("equal")
    x = np.asarray(card.positions, dtype=np.float64)
    x = x - x.mean(axis=0)
    turn = np.linalg.svd(x, full_matrices=True)[2]
    turn = turn * np.sign(turn[np.arange(3), np.abs(turn).argmax(axis=1)])[:, None]
    turn[2] = np.cross(turn[0], turn[1])
    tilt = 0.35
    lean = np.array(
        [[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]]
    )
    x = x @ turn.T @ lean.T
    table = GetPeriodicTable()
    radius = np.array([0.2 + 0.28 * table.GetRcovalent(int(z)) for z in card.numbers])
    depth = x[:, 2]
    near = (depth - depth.min()) / max(float(np.ptp(depth)), 1e-9)
    for i, j, order in card.bonds.tolist():
        along = x[j, :2] - x[i, :2]
        length = float(np.linalg.norm(along))
        if length < 1e-6:
            continue
        side = np.array([-along[1], along[0]]) / length
        for k in range(order):
            shift = side * 0.17 * (k - (order - 1) / 2)
            ends = np.stack([x[i, :2] + shift, x[j, :2] + shift])
            level = float(min(depth[i], depth[j]))
            for width, colour, lift in ((4.2, "#6b7280", 0.0), (2.6, "#cbd0d8", 1e-3)):
                stick = Line2D(
                    *ends.T,
                    lw=width / (1 + 0.25 * (order - 1)),
                    c=colour,
                    solid_capstyle="round",
                    zorder=10 + level + lift,
                )
                axes.add_artist(stick)
    for i, z in enumerate(card.numbers.tolist()):
        base = np.array(_rgb(_COLOURS.get(z, "#b08fc7")))
        at, z_order = x[i, :2], 10 + float(depth[i]) + 0.01
        # `add_artist`, because `add_patch` would refit the limits, which are set below, every time.
        axes.add_artist(Circle(at, radius[i], fc=base * 0.62, ec="none", zorder=z_order))
        for step in range(1, _SHADES + 1):
            share = step / _SHADES
            colour = base * (0.68 + 0.32 * share) * (0.9 + 0.1 * near[i])
            colour = colour + (1 - colour) * 0.45 * max(0.0, share - 0.55) / 0.45
            centre = at + radius[i] * 0.3 * share * np.array([-1, 1])
            ball = Circle(
                centre,
                radius[i] * (1 - 0.84 * share),
                fc=np.clip(colour, 0, 1),
                ec="none",
                zorder=z_order + 1e-4 * step,
            )
            axes.add_artist(ball)
    wide, high = np.abs(x[:, :2]).max(axis=0) + 0.6
    reach = max(float(wide), float(high) / _SHAPE)
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach * _SHAPE, reach * _SHAPE)


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))


def _drawing() -> Any:
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure
