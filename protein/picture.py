r"""Pictures of backbones: cartoons in three dimensions, and Ramachandran plots.

A cartoon is a tube along a Catmull-Rom spline through the C-alphas, flattened to a ribbon where the
chain is a helix or a strand, with an arrow at the end of a strand. The ribbon's wide side is normal
to both bonds at a residue: along the axis of a helix, and in the sheet of a strand (cf. Carson &
Bugg, J. Mol. Graph. 4, 121, 1986). Its surface is sampled more densely than the pixels, each sample
with its normal, and the nearest sample wins its pixel; light comes from above the viewer's
shoulder, and what lies behind fades towards white. Colours are secondary structure as P-SEA sees
it: helix orange, strand blue.

The view is along the shortest principal axis, so a chain shows its broadest side, and it is a
rotation: a right-handed helix stays one. Equal chains make equal files.

Behind a Ramachandran plot lie frequencies of chains of the Protein Data Bank (wwPDB, CC0), made by

    python -m driftworks.protein.picture protein_backbones.npz protein/assets/ramachandran.npz
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from driftworks.core.checkpoint import write_file
from driftworks.data.structures import psea
from driftworks.errors import UserError
from driftworks.protein.chains import Chains
from driftworks.protein.geometry import torsions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SUFFIXES", "cartoon", "draw", "ramachandran", "sheet"]

Array = NDArray[np.float64]

SUFFIXES = (".png", ".svg", ".pdf")
MOST = 16
COLOURS = {"a": "#ea580c", "b": "#2563eb", "c": "#9aa3af"}
INK, GREY = "#1f2937", "#c3c9d2"
#: Half the width and the thickness of a ribbon by kind [angstrom]; the width of an arrow's barbs.
_SHAPE = {"a": (1.5, 0.3), "b": (1.2, 0.3), "c": (0.4, 0.4)}
_BARB = 2.2
_SUPERSAMPLING = 2
_FINE = 8  # spline points a residue that decide where ribbons run; surfaces are denser

_ASSET = Path(__file__).parent / "assets" / "ramachandran.npz"

STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "driftworks", "font.size": 9,
    "font.family": "sans-serif", "axes.edgecolor": "#9ca3af", "axes.labelcolor": INK,
    "xtick.color": "#4b5563", "ytick.color": "#4b5563", "axes.spines.top": False,
    "axes.spines.right": False, "axes.linewidth": 0.8,
}  # fmt: skip


def draw(
    chains: Chains, path: Path | str, *, columns: int | None = None, title: str | None = None
) -> Path:
    """Draw the first `MOST` finite chains on one sheet, written whole or not at all.

    columns: chains a row, by default as many as make the sheet square; title: above the sheet

    Raises `UserError` for no finite chain, an unknown suffix, and a place that cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"cannot draw to {path.name!r}: choose from {', '.join(SUFFIXES)}")
    content = sheet(chains, path.suffix.lower()[1:], columns=columns, title=title)
    return write_file(path, content)


def sheet(
    chains: Chains, kind: str = "png", *, columns: int | None = None, title: str | None = None
) -> bytes:
    """The sheet of `draw` as the bytes of a png, svg or pdf."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = []
    for one in chains:
        (points,) = one.arrays()
        if len(points) > 1 and np.isfinite(points).all():
            shown.append((one.ids[0], points))
        if len(shown) == MOST:
            break
    if not shown:
        raise UserError("there are no chains to draw")
    wide = min(columns or math.ceil(math.sqrt(len(shown))), len(shown))
    high = math.ceil(len(shown) / wide)
    with rc_context(STYLE):
        figure = Figure(figsize=(2.3 * wide, 2.5 * high + (0.35 if title else 0.0)))
        FigureCanvasAgg(figure)
        for k, (name, points) in enumerate(shown):
            axes = figure.add_subplot(high, wide, k + 1)
            axes.set_axis_off()
            axes.imshow(cartoon(points, (320, 320)), interpolation="lanczos")
            axes.set_title(f"{name[-24:]} · {len(points)}", fontsize=7.5, color=INK, pad=2)
        if title:
            figure.suptitle(title, fontsize=9, color=INK)
        top = 1 - 0.3 / figure.get_figheight() if title else 1.0
        figure.tight_layout(pad=0.3, rect=(0, 0, 1, top))
        return as_bytes(figure, kind)


def ramachandran(
    backbones: Sequence[ArrayLike],
    natives: Sequence[ArrayLike] | None = None,
    kind: str = "svg",
) -> bytes:
    """The phi, psi plot of backbones (n, 4, 3) over that of natives, as the bytes of a picture.

    natives: backbones; by default the shipped frequencies of chains of the Protein Data Bank

    The region that `geometry.ramachandran` calls favoured is outlined. Residues that are not finite
    are left out.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    angle = _phi_psi(backbones)
    with rc_context(STYLE):
        figure = Figure(figsize=(4.4, 4.2))
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        shade = _builtin() if natives is None else _shade(natives)
        axes.imshow(
            shade.T, cmap="Greys", vmin=0, vmax=1.3, origin="lower", extent=(-180, 180, -180, 180)
        )
        look: dict[str, Any] = {"fc": "none", "ec": "#16a34a", "lw": 1.0, "ls": (0, (4, 2))}
        for low, high in ((-180, -160), (-80, 50), (90, 180)):
            axes.add_patch(Rectangle((-180, low), 145, high - low, **look))
        if len(angle):
            phi, psi = angle.T
            axes.scatter(phi, psi, s=3, c=COLOURS["b"], lw=0, alpha=0.5, rasterized=True)
        axes.set(xlim=(-180, 180), ylim=(-180, 180), xlabel="φ [degrees]", ylabel="ψ [degrees]")
        axes.set_xticks(range(-180, 181, 90))
        axes.set_yticks(range(-180, 181, 90))
        axes.set_aspect("equal")
        figure.tight_layout(pad=0.4)
        return as_bytes(figure, kind)


def cartoon(points: ArrayLike, size: tuple[int, int] = (320, 320)) -> Array:
    """(height, width, 3) image in [0, 1] of one chain (n, 3) [angstrom], n of 2 or more.

    size: (width, height) in pixels. Raises `UserError` for another shape and for NaN.
    """
    ca = np.asarray(points, np.float64)
    if ca.ndim != 2 or ca.shape[1] != 3 or len(ca) < 2 or not np.isfinite(ca).all():
        raise UserError(f"cannot draw a chain of shape {ca.shape}: expected finite (n, 3), n > 1")
    width, height = (_SUPERSAMPLING * side for side in size)
    ca = _broadside(ca)
    extent = np.maximum(np.ptp(ca[:, :2], axis=0) + 2 * _BARB + 1.0, 12.0)
    scale = float(min(width / extent[0], height / extent[1]))
    middle = (ca.min(axis=0) + ca.max(axis=0)) / 2
    surface, normals, colours = _ribbon(ca, psea(ca), scale)
    x = np.round((surface[:, 0] - middle[0]) * scale + width / 2).astype(np.int64)
    y = np.round((middle[1] - surface[:, 1]) * scale + height / 2).astype(np.int64)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y, depth = x[inside], y[inside], surface[inside, 2]
    order = np.argsort(depth, kind="stable")
    winner = np.full(width * height, -1)
    winner[(y * width + x)[order]] = np.flatnonzero(inside)[order]  # the last written is nearest
    image = np.ones((width * height, 3))
    seen = winner >= 0
    chosen = winner[seen]
    light = _light(normals[chosen])
    behind = (depth.max() - surface[chosen, 2]) / max(float(np.ptp(ca[:, 2])), 15.0)
    lit = np.clip(colours[chosen] ** 2.2 * light[:, None], 0, 1) ** (1 / 2.2)
    fog = 0.45 * np.clip(behind, 0, 1)[:, None]
    image[seen] = lit * (1 - fog) + fog
    k = _SUPERSAMPLING
    blocks = image.reshape(height // k, k, width // k, k, 3)
    return np.asarray(blocks.mean(axis=(1, 3)))


def _broadside(ca: Array) -> Array:
    """The chain turned so that its longest principal axis lies across and its shortest in depth."""
    centred = ca - ca.mean(axis=0)
    _, _, axes = np.linalg.svd(np.concatenate([centred, np.zeros((3, 3))]), full_matrices=False)
    # signs that do not depend on the routine: the end of the chain lies right and up
    for k in (0, 1):
        if axes[k] @ (centred[-1] - centred[0]) < 0:
            axes[k] = -axes[k]
    axes[2] = np.cross(axes[0], axes[1])
    return np.asarray(centred @ axes.T)


def _ribbon(ca: Array, kinds: NDArray[np.str_], scale: float) -> tuple[Array, Array, Array]:
    """Points of the surface, their normals and colours, denser than a pixel of `scale`."""
    from matplotlib.colors import to_rgb

    n = len(ca)
    guide = _flattened(ca, kinds)
    across = _across(ca)
    steps = max(_FINE, math.ceil(5.4 * scale))
    at = np.linspace(0, n - 1, (n - 1) * steps + 1)
    centre, along = _spline(guide, at)
    side = _unit(_linear(across, at))
    side = _unit(side - (side * along).sum(axis=1, keepdims=True) * along)
    normal = np.cross(along, side)
    wide, thick = _profile(kinds, at)
    table = np.array([to_rgb(COLOURS[k]) for k in kinds])
    colours = table[np.clip(np.round(at), 0, n - 1).astype(int)]
    parts = []
    for rows in (wide > 2 * _SHAPE["c"][0], wide <= 2 * _SHAPE["c"][0]):
        if not rows.any():
            continue
        rim = max(16, math.ceil(8.0 * float(wide[rows].max()) * scale))
        turn = np.linspace(0, 2 * math.pi, rim, endpoint=False)
        cos, sin = np.cos(turn)[None, :, None], np.sin(turn)[None, :, None]
        w, t = wide[rows, None, None], thick[rows, None, None]
        s, m = side[rows, None], normal[rows, None]
        parts.append((
            (centre[rows, None] + w * cos * s + t * sin * m).reshape(-1, 3),
            # the gradient of the ellipse's equation
            _unit(t * cos * s + w * sin * m).reshape(-1, 3),
            np.repeat(colours[rows], rim, axis=0),
        ))
    surface, normals, shades = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return surface, normals, shades


def _flattened(ca: Array, kinds: NDArray[np.str_]) -> Array:
    """C-alphas with the pleat of strands taken out: the mean of each and its neighbours."""
    out = ca.copy()
    inner = np.flatnonzero((kinds[:-2] == "b") & (kinds[1:-1] == "b") & (kinds[2:] == "b")) + 1
    out[inner] = (ca[inner - 1] + 2 * ca[inner] + ca[inner + 1]) / 4
    return out


def _across(ca: Array) -> Array:
    """(n, 3) unit vectors normal to both bonds at each residue, none turned against the last."""
    if len(ca) < 3:
        bond = ca[-1] - ca[0]
        other = np.eye(3)[np.abs(bond).argmin()]
        return np.tile(_unit(np.cross(bond, other)[None]), (len(ca), 1))
    steps = np.diff(ca, axis=0)
    out = np.cross(steps[:-1], steps[1:])
    out = _unit(np.concatenate([out[:1], out, out[-1:]]))
    for k in range(1, len(out)):
        if out[k] @ out[k - 1] < 0:
            out[k] = -out[k]
    smooth = np.concatenate([out[:1], out, out[-1:]])
    return _unit(smooth[:-2] + 2 * smooth[1:-1] + smooth[2:])


def _profile(kinds: NDArray[np.str_], at: Array) -> tuple[Array, Array]:
    """Half widths and half thicknesses along the chain, with arrows where strands end."""
    shape = np.array([_SHAPE[k] for k in kinds])
    wide, thick = _linear(shape, at).T
    last = np.flatnonzero((kinds == "b") & (np.append(kinds[1:], "c") != "b"))
    for end in last.tolist():
        head = (at >= end - 1.5) & (at <= end + 0.3)
        left = (end + 0.3 - at[head]) / 1.8
        wide = wide.copy()
        wide[head] = np.maximum(_BARB * left, _SHAPE["c"][0])
    return wide, thick


def _spline(points: Array, at: Array) -> tuple[Array, Array]:
    """A Catmull-Rom spline through points at 0, 1, ..., and its unit tangents."""
    padded = np.concatenate([[2 * points[0] - points[1]], points, [2 * points[-1] - points[-2]]])
    k = np.clip(at.astype(int), 0, len(points) - 2)
    u = (at - k)[:, None]
    a, b, c, d = (padded[k + j] for j in range(4))
    m, p, q = c - a, 2 * a - 5 * b + 4 * c - d, 3 * b - a - 3 * c + d
    place = b + 0.5 * u * (m + u * (p + u * q))
    return place, _unit(0.5 * (m + u * (2 * p + 3 * u * q)))


def _linear(values: Array, at: Array) -> Array:
    k = np.clip(at.astype(int), 0, len(values) - 2)
    u = (at - k)[:, None]
    return np.asarray((1 - u) * values[k] + u * values[k + 1])


def _unit(v: Array) -> Array:
    return np.asarray(v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12))


def _light(normals: Array) -> Array:
    """Brightness of normals that face the viewer or are seen from behind."""
    facing = np.where(normals[:, 2:] < 0, -normals, normals)
    key = np.array([-0.4, 0.6, 0.7])
    lambert = np.maximum(facing @ (key / np.linalg.norm(key)), 0)
    return np.asarray(0.35 + 0.75 * lambert + 0.1 * facing[:, 2] ** 20)


def _phi_psi(backbones: Sequence[ArrayLike]) -> Array:
    """(m, 2) phi and psi [degrees] of all residues that have both."""
    rows = [np.zeros((0, 2))]
    for given in backbones:
        angle = torsions(np.asarray(given, np.float64))[:, :2]
        rows.append(angle[np.isfinite(angle).all(axis=1)])
    return np.concatenate(rows)


def _shade(backbones: Sequence[ArrayLike]) -> Array:
    """(72, 72) square root of the frequency of phi and psi, the largest 1."""
    phi, psi = _phi_psi(backbones).T
    reach = (-180.0, 180.0)
    counts, _, _ = np.histogram2d(phi, psi, bins=72, range=[reach, reach])
    return np.asarray(np.sqrt(counts / max(counts.max(), 1)))


def _builtin() -> Array:
    with np.load(_ASSET, allow_pickle=False) as stored:
        return np.asarray(stored["shade"] / 255.0)


def as_bytes(figure: Figure, kind: str) -> bytes:
    """A figure as a png, svg or pdf that is equal for equal figures."""
    out = io.BytesIO()
    # neither a date nor the version of the program: equal chains, equal files
    unsaid = {"svg": "Date", "pdf": "CreationDate", "png": "Software"}[kind]
    figure.savefig(out, format=kind, dpi=140, metadata={unsaid: None})
    return out.getvalue()


def main(source: str, out: str) -> None:
    """Write the frequencies of phi and psi in the training split of a table."""
    from driftworks.data import backbones

    table = backbones.read(source)
    shade = _shade([table.bb(int(i)) for i in table.rows("train", complete=True)])
    np.savez_compressed(out, shade=np.round(255 * shade).astype(np.uint8))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m driftworks.protein.picture TABLE.npz OUT.npz")
    main(*sys.argv[1:])
