"""Pictures: a match as one PNG, both shapes from two sides in colours that correspond.

The third column shows shape b coloured by confidence. Both shapes are drawn at one scale for equal
areas, seen from corresponding sides (`appearance.frames`) by the renderer of `raster`. A match that
is flagged as failed says so across the picture.
"""

from __future__ import annotations

import io
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from driftworks.core.checkpoint import write_file
from driftworks.errors import UserError
from driftworks.shapes.appearance import frame, frames, place_colours, scale_colours, turn
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.raster import View, look, paint
from driftworks.shapes.result import Match

__all__ = ["mesh_picture", "picture"]

Array = NDArray[np.float64]

_PANEL = (500, 440)
_MARGIN, _HEAD, _FOOT = 32, 112, 76
#: Degrees: the second view is from behind.
_YAWS, _ELEVATION = (-28.0, 152.0), 12.0
_INK, _GREY, _RED = (32, 36, 42), (112, 118, 126), (178, 28, 38)


def picture(match: Match, path: str | PathLike[str], *, up: str | None = None) -> None:
    """Write a PNG of a match.

    up: which axis points upwards in both files, one of `appearance.UPS`; None to find it
    Raises `UserError` for another ending than .png and where nothing can be written.
    """
    path = _png(path)
    turned = frames(match, up)
    units = match.a.normalised(), match.b.normalised()
    turns = [turn(yaw, _ELEVATION) for yaw in _YAWS]
    scale = min(_fitting(unit, t @ f) for unit, f in zip(units, turned, strict=True) for t in turns)
    places = place_colours(units[0], turned[0])
    columns: list[list[Array]] = []
    for unit, f, coloured in (
        (units[0], turned[0], [places]),
        (units[1], turned[1], [places[match.map_ba], scale_colours(match.confidence_b)]),
    ):
        views = [look(unit, t @ f, _PANEL, scale) for t in turns]
        columns += [[paint(view, colours) for view in views] for colours in coloured]
    width = 3 * _PANEL[0] + 2 * _MARGIN
    sheet = _Sheet(width, _HEAD + len(turns) * _PANEL[1] + _FOOT)
    for i, column in enumerate(columns):
        for j, image in enumerate(column):
            sheet.put(image, _MARGIN + i * _PANEL[0], _HEAD + j * _PANEL[1])
    names = match.a.name or "a", match.b.name or "b"
    sheet.text(f"{_short(names[0])} → {_short(names[1])}", _MARGIN, 26, 30, _INK, bold=True)
    remarks = [f"score {match.score:.2f}", f"start: {match.hypothesis}"]
    remarks += ["mirrored"] if match.mirrored else []
    sheet.text("   ·   ".join(remarks), _MARGIN, 68, 19, _GREY)
    if match.failed:
        sheet.banner("FAILED: do not use this map", width - _MARGIN, 28)
    bottom = sheet.height - _FOOT
    for i, (mesh, name) in enumerate(zip((match.a, match.b), names, strict=True)):
        middle = _MARGIN + i * _PANEL[0] + _PANEL[0] // 2
        sheet.text(_short(name, 34), middle, bottom + 8, 19, _INK, centred=True)
        sheet.text(_size(mesh), middle, bottom + 36, 15, _GREY, centred=True)
    middle = _MARGIN + 2 * _PANEL[0] + _PANEL[0] // 2
    sheet.text("confidence", middle, bottom + 8, 19, _INK, centred=True)
    sheet.bar(middle, bottom + 40, ("0", "1"))
    sheet.save(path)


def mesh_picture(
    mesh: Mesh,
    path: str | PathLike[str],
    values: ArrayLike | None = None,
    *,
    up: str | None = None,
) -> None:
    """Write a PNG of one mesh from two sides.

    values: (n,) numbers, spread over the colours from their smallest to their largest, or (n, 3)
        colours in [0, 1]; None for colours by place
    up, and what is raised: as in `picture`; also `UserError` for values of another shape
    """
    path = _png(path)
    rotation, unit = frame(mesh, up), mesh.normalised()
    colours, ends = _colours(unit, rotation, values)
    turns = [turn(yaw, _ELEVATION) for yaw in _YAWS]
    scale = min(_fitting(unit, t @ rotation) for t in turns)
    sheet = _Sheet(2 * (_PANEL[0] + _MARGIN), _MARGIN + _PANEL[1] + _FOOT)
    for j, t in enumerate(turns):
        view: View = look(unit, t @ rotation, _PANEL, scale)
        sheet.put(paint(view, colours), _MARGIN + j * _PANEL[0], _MARGIN)
    bottom, middle = sheet.height - _FOOT, _MARGIN + _PANEL[0] // 2
    sheet.text(_short(mesh.name or "mesh", 34), middle, bottom + 8, 19, _INK, centred=True)
    sheet.text(_size(mesh), middle, bottom + 36, 15, _GREY, centred=True)
    if ends is not None:
        sheet.bar(middle + _PANEL[0], bottom + 20, ends)
    sheet.save(path)


def _png(path: str | PathLike[str]) -> Path:
    if Path(path).suffix.lower() != ".png":
        raise UserError(f"{path} has the ending {Path(path).suffix!r}; pictures are .png files")
    return Path(path)


def _fitting(unit: Mesh, rotation: Array) -> float:
    """Pixels for one unit of length so that the shape fills nine tenths of a panel."""
    extent = np.ptp(unit.vertices @ rotation.T, axis=0)
    return float(0.9 * min(_PANEL[0] / extent[0], _PANEL[1] / max(extent[1], 1e-12)))


def _colours(
    unit: Mesh, rotation: Array, values: ArrayLike | None
) -> tuple[Array, tuple[str, str] | None]:
    """Colours (n, 3), and what stands at the ends of their scale where there is one."""
    if values is None:
        return place_colours(unit, rotation), None
    given = np.asarray(values, np.float64)
    if given.shape == (len(unit), 3):
        return given, None
    if given.shape != (len(unit),):
        raise UserError(
            f"values must be ({len(unit)},) numbers or ({len(unit)}, 3) colours, not {given.shape}"
        )
    known = given[np.isfinite(given)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    spread = (given - low) / (high - low) if high > low else given - low + 0.5
    return scale_colours(spread), (f"{low:.3g}", f"{high:.3g}")


def _short(name: str, most: int = 40) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _size(mesh: Mesh) -> str:
    return f"{len(mesh):,} points" if mesh.is_cloud else f"{len(mesh):,} vertices"


class _Sheet:
    """A white image that panels and words are put on."""

    def __init__(self, width: int, height: int) -> None:
        from PIL import Image, ImageDraw

        self.height = height
        self._image = Image.new("RGB", (width, height), "white")
        self._draw = ImageDraw.Draw(self._image)

    def put(self, panel: Array, x: int, y: int) -> None:
        from PIL import Image

        image = Image.fromarray(np.rint(255 * panel).astype(np.uint8), "RGBA")
        self._image.paste(image, (x, y), image)

    def text(
        self,
        words: str,
        x: int,
        y: int,
        size: int,
        colour: tuple[int, int, int],
        *,
        bold: bool = False,
        centred: bool = False,
    ) -> None:
        self._draw.text((x, y), words, colour, _font(size, bold), "ma" if centred else "la")

    def banner(self, words: str, right: int, y: int) -> None:
        font = _font(22, True)
        width = int(self._draw.textlength(words, font))
        self._draw.rounded_rectangle((right - width - 36, y, right, y + 48), 8, _RED)
        self._draw.text((right - width - 18, y + 11), words, "white", font)

    def bar(self, middle: int, y: int, ends: tuple[str, str]) -> None:
        """The scale of colours, with what its ends mean."""
        length = 200
        row = np.rint(255 * scale_colours(np.linspace(0, 1, length))).astype(np.uint8)
        for i, colour in enumerate(row.tolist()):
            x = middle - length // 2 + i
            self._draw.line((x, y, x, y + 12), tuple(colour))
        font = _font(15, False)
        self._draw.text((middle - length // 2 - 10, y + 6), ends[0], _GREY, font, "rm")
        self._draw.text((middle + length // 2 + 10, y + 6), ends[1], _GREY, font, "lm")

    def save(self, path: Path) -> None:
        content = io.BytesIO()
        self._image.save(content, "PNG")
        write_file(path, content.getvalue())


def _font(size: int, bold: bool) -> Any:
    """DejaVu Sans, which comes with matplotlib."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
