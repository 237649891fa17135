"""An interactive page of a match: one HTML file that needs no network and no other file.

Both shapes turn together; a place that is touched on one shows its partner on the other; colours
are those of correspondence, of confidence, or none. The page is drawn by WebGL 2 (`assets/
viewer.html`, code of our own); coordinates, faces and maps are embedded as base64 of little-endian
arrays. Names reach the page as JSON inside a script element, with every < escaped, and are shown as
text, so a name cannot bring code along.
"""

from __future__ import annotations

import base64
import html
import json
import re
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftworks.core.checkpoint import write_file
from driftworks.errors import UserError
from driftworks.shapes.appearance import frames, place_colours, scale_colours
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.result import Match

__all__ = ["page"]

Array = NDArray[np.float64]


def page(match: Match, path: str | PathLike[str], *, up: str | None = None) -> None:
    """Write the page of a match.

    up: which axis points upwards in both files, one of `appearance.UPS`; None to find it
    Raises `UserError` for another ending than .html and where nothing can be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{path} has the ending {path.suffix!r}; pages are .html files")
    names = match.a.name or "a", match.b.name or "b"
    turned = frames(match, up)
    places = place_colours(match.a.normalised(), turned[0])
    data = {
        "score": round(float(match.score), 4),
        "failed": bool(match.failed),
        "mirrored": bool(match.mirrored),
        "hypothesis": match.hypothesis,
        "notes": [
            *(f"{mesh.name}: {note}" for mesh in (match.a, match.b) for note in mesh.notes),
            *match.notes,
        ],
        "shapes": [
            _shape(match.a, names[0], turned[0], places, match.confidence_a, match.map_ab),
            _shape(
                match.b, names[1], turned[1], places[match.map_ba], match.confidence_b, match.map_ba
            ),
        ],
    }
    template = files("driftworks.shapes").joinpath("assets/viewer.html").read_text("utf-8")
    fills = {
        "@TITLE@": html.escape(" → ".join(names)),
        "@DATA@": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
    }
    # in one pass: a name that looks like a placeholder stays a name
    text = re.sub("@TITLE@|@DATA@", lambda found: fills[found[0]], template)
    write_file(path, text.encode())


def _shape(
    mesh: Mesh, name: str, rotation: Array, colours: Array, confidence: Array, partner: Any
) -> dict[str, Any]:
    """What the page needs of one shape, turned so that x is right, y up, z towards the viewer."""
    points = mesh.normalised().vertices @ rotation.T
    points = points - (points.min(0) + points.max(0)) / 2
    return {
        "name": name,
        "vertices": len(mesh),
        "faces": _packed(mesh.faces, "<u4"),
        "points": _packed(points, "<f4"),
        "normals": _packed(np.rint(127 * (mesh.normals @ rotation.T)), "i1"),
        "radius": float(np.sqrt(np.median(mesh.vertex_areas) / mesh.area)),
        "place": _packed(np.rint(255 * colours), "u1"),
        "trust": _packed(np.rint(255 * scale_colours(confidence)), "u1"),
        "confidence": _packed(np.rint(255 * confidence), "u1"),
        "partner": _packed(partner, "<u4"),
        "number": _packed(mesh.source_numbers, "<i4"),
    }


def _packed(array: NDArray[Any], kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array).astype(kind).tobytes()).decode()
