"""A sheet of graphs as a picture, for a look at what a model draws.

Nodes lie where shortest paths are nearest to straight lines (Kamada & Kawai 1989); larger and
unconnected graphs where a spring model comes to rest (Fruchterman & Reingold 1991). Both start from
a fixed state, so that equal graphs make equal pictures. Colours are the values of the first
categorical attribute of the nodes, widths of lines an attribute ``order`` or the weight.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from driftworks.errors import UserError

if TYPE_CHECKING:
    from networkx import Graph

__all__ = ["SUFFIXES", "draw"]

SUFFIXES = (".png", ".svg", ".pdf")
MOST = 25
LARGEST = 80  # nodes, for the first of the two layouts, whose cost grows with their cube
INCH = 1.8


def draw(
    graphs: Sequence[Graph],
    path: Path | str,
    columns: int | None = None,
    colour: str | None = None,
    title: str | None = None,
) -> Path:
    """Draw the first `MOST` graphs on one sheet, written whole or not at all.

    columns: graphs a row, by default as many as make the sheet square; colour: the node attribute
    to colour by, by default the first that all nodes have; title: above the sheet

    Raises `UserError` for no graphs, an unknown suffix, and a place that cannot be written.
    """
    import io

    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from driftworks.core.checkpoint import write_file

    path, shown = Path(path), list(graphs[:MOST])
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"cannot draw to {path.name!r}: choose from {', '.join(SUFFIXES)}")
    if not shown:
        raise UserError("there are no graphs to draw")
    wide = min(columns or math.ceil(math.sqrt(len(shown))), len(shown))
    high = math.ceil(len(shown) / wide)
    figure = Figure(figsize=(INCH * wide, INCH * high + (0.4 if title else 0.0)))
    FigureCanvasAgg(figure)
    palette = palette_of(shown, colour)
    for k, graph in enumerate(shown):
        axes = figure.add_subplot(high, wide, k + 1)
        axes.set_axis_off()
        axes.set_aspect("equal")
        draw_one(axes, graph, palette)
    if title:
        figure.suptitle(title, fontsize=9)
    figure.tight_layout(pad=0.4)
    out = io.BytesIO()
    # neither a date nor random identifiers: equal graphs, equal files
    kind = path.suffix.lower()[1:]
    dated = {"svg": "Date", "pdf": "CreationDate"}.get(kind)
    with rc_context({"svg.hashsalt": "driftworks"}):
        figure.savefig(out, format=kind, dpi=120, metadata={dated: None} if dated else None)
    return write_file(path, out.getvalue())


def palette_of(
    graphs: Sequence[Graph], colour: str | None
) -> tuple[str | None, dict[Hashable, Any]]:
    """The attribute to colour by and the colour of each of its values."""
    from matplotlib import colormaps

    data = [values for graph in graphs for _, values in graph.nodes(data=True)]
    if colour is None and data:
        common = [name for name in data[0] if all(name in values for values in data)]
        colour = next(
            (n for n in common if all(isinstance(v[n], str | int) for v in data)), None
        )
    if colour is None:
        return None, {}
    values = sorted({values[colour] for values in data if colour in values}, key=str)
    table = colormaps["tab10" if len(values) <= 10 else "tab20"]
    return colour, {value: table(k % table.N) for k, value in enumerate(values)}


def draw_one(axes: Any, graph: Graph, palette: tuple[str | None, dict[Hashable, Any]]) -> None:
    import networkx as nx

    if len(graph) <= LARGEST and nx.is_connected(graph):
        places = nx.kamada_kawai_layout(graph, weight=None)
    else:
        places = nx.spring_layout(graph, seed=0, weight=None)
    for u, v, data in graph.edges(data=True):
        order = data.get("order")
        width = 0.9 * order if isinstance(order, int) and 0 < order < 4 else 0.9
        (x0, y0), (x1, y1) = places[u], places[v]
        axes.plot([x0, x1], [y0, y1], color="#8a8a8a", linewidth=width, zorder=1)
    name, colours = palette
    points = [places[node] for node in graph]
    shades = [colours.get(data.get(name), "#2f6f9f") for _, data in graph.nodes(data=True)]
    size = max(4.0, min(36.0, 600.0 / len(graph)))
    axes.scatter(*zip(*points, strict=True), s=size, c=shades, zorder=2, linewidths=0)
    axes.margins(0.1)
