"""What matching two shapes gives: maps both ways, how far they can be trusted, and a file of it.

A `Match` of shapes a and b carries vertex maps in both directions and the functional maps that they
come from. Convention: ``c_ab`` (k_b, k_a) takes coefficients of functions on a to functions on b;
``map_ba`` (len(b),) gives for each vertex of b its vertex on a, and pulls functions of a over to b:
f on a is f[map_ba] on b.

Two kinds of trust are kept apart. ``score`` is about the whole map: the probability that it is
right and not flipped or torn, judged without labels (`ranking`). ``confidence_b``, ``confidence_a``
are about single vertices.

The file is a plain ``.npz`` of numbers and strings, read without pickle.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftworks.core.checkpoint import write_file
from driftworks.errors import UserError
from driftworks.shapes.mesh import Mesh

__all__ = ["Hypothesis", "Match"]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

#: Of the file's layout.
_VERSION = 1


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """One candidate among those that a match was chosen from.

    name: where it started, such as "wks" or "frame 2"
    score: probability that the map is right and not another of these, in [0, 1]
    parts: the measurements that the score was made of, by name (`ranking.MEASURES`)
    map_ba, map_ab: (len(b),), (len(a),) vertex maps; of hypotheses that `match` did not choose they
        are precise at its samples and go to samples from elsewhere
    mirrored: whether it turns surfaces inside out, as a reflection does
    """

    name: str
    score: float
    parts: dict[str, float]
    map_ba: Indices
    map_ab: Indices
    mirrored: bool = False


@dataclass(frozen=True, eq=False)
class Match:
    """A correspondence between the meshes a and b.

    a, b: the meshes as given, repaired but not normalised
    map_ba: (len(b),) for every vertex of b its vertex on a; map_ab: (len(a),) the other way
    c_ab: (k, k) functional map from a to b on area-1 shapes; c_ba: (k, k) back
    confidence_b, confidence_a: (len(b),), (len(a),) in [0, 1]
    failed: whether the map should not be used: its score is below one half
    score: probability that the map as a whole is right, in [0, 1]
    hypothesis: name of the winner; hypotheses: all that were compared, the best first
    mirrored: whether the map turns surfaces inside out, as between a left and a right hand
    notes: what should be known, a sentence each
    """

    a: Mesh
    b: Mesh
    map_ba: Indices
    map_ab: Indices
    c_ab: Array
    c_ba: Array
    confidence_b: Array
    confidence_a: Array
    failed: bool
    score: float
    hypothesis: str
    hypotheses: tuple[Hypothesis, ...] = ()
    mirrored: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sizes = {"map_ba": self.b, "confidence_b": self.b, "map_ab": self.a, "confidence_a": self.a}
        for name, mesh in sizes.items():
            if getattr(self, name).shape != (len(mesh),):
                raise UserError(f"{name} is {getattr(self, name).shape}, not {(len(mesh),)}")
        for vertices, mesh in ((self.map_ba, self.a), (self.map_ab, self.b)):
            if len(vertices) and not 0 <= vertices.min() <= vertices.max() < len(mesh):
                raise UserError(f"a vertex map leaves the {len(mesh)} vertices of its target")

    def __repr__(self) -> str:
        state = "failed, " if self.failed else "mirrored, " if self.mirrored else ""
        names = f"{self.a.name or 'a'} -> {self.b.name or 'b'}"
        return f"Match({names}, {state}score {self.score:.2f}, {self.hypothesis!r})"

    def render(self, path: str | PathLike[str]) -> None:
        """A picture of both meshes in colours that correspond (PNG)."""
        from driftworks.shapes import render

        render.picture(self, path)

    def transfer(self, what: Any) -> Any:
        """Vertex numbers or values on a, carried over to b; see `shapes.transfer`."""
        from driftworks.shapes import transfer

        return transfer.transfer(self, what)

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything to an ``.npz`` file. Raises `UserError` where that is not possible."""
        content: dict[str, Any] = {"version": _VERSION}
        for side, mesh in (("a", self.a), ("b", self.b)):
            content |= {
                f"{side}.vertices": mesh.vertices,
                f"{side}.faces": mesh.faces,
                f"{side}.origin": mesh.origin,
                f"{side}.source_numbers": mesh.source_numbers,
                f"{side}.name": mesh.name,
                f"{side}.notes": _strings(mesh.notes),
            }
        for name in (*_ARRAYS, "failed", "score", "hypothesis", "mirrored"):
            content[name] = getattr(self, name)
        content["notes"] = _strings(self.notes)
        content["hypotheses"] = _strings(h.name for h in self.hypotheses)
        for i, h in enumerate(self.hypotheses):
            content |= {
                f"{i}.score": h.score,
                f"{i}.mirrored": h.mirrored,
                f"{i}.measures": _strings(h.parts),
                f"{i}.values": np.array(list(h.parts.values()), np.float64),
                f"{i}.map_ba": h.map_ba,
                f"{i}.map_ab": h.map_ab,
            }
        packed = io.BytesIO()
        np.savez_compressed(packed, **content)
        write_file(Path(path), packed.getvalue())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Match:
        """Read what `save` wrote. Raises `UserError` for a file that is missing or something else.
        """
        try:
            with np.load(Path(path), allow_pickle=False) as stored:
                data = {key: stored[key] for key in stored.files}
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is no saved match: {error}") from error
        try:
            if (version := int(data["version"])) != _VERSION:
                raise UserError(f"{path} has layout {version}; this library reads {_VERSION}")
            hypotheses = tuple(
                _hypothesis(data, i, str(name)) for i, name in enumerate(data["hypotheses"])
            )
            return cls(
                a=_mesh(data, "a"),
                b=_mesh(data, "b"),
                map_ba=data["map_ba"],
                map_ab=data["map_ab"],
                c_ab=data["c_ab"],
                c_ba=data["c_ba"],
                confidence_b=data["confidence_b"],
                confidence_a=data["confidence_a"],
                failed=bool(data["failed"]),
                score=float(data["score"]),
                hypothesis=str(data["hypothesis"]),
                hypotheses=hypotheses,
                mirrored=bool(data["mirrored"]),
                notes=tuple(data["notes"].tolist()),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is no saved match: {error}") from error


_ARRAYS = ("map_ba", "map_ab", "c_ab", "c_ba", "confidence_b", "confidence_a")


def _strings(items: Any) -> NDArray[np.str_]:
    return np.array(list(items), dtype=np.str_)


def _mesh(data: dict[str, Any], side: str) -> Mesh:
    return Mesh(
        data[f"{side}.vertices"],
        data[f"{side}.faces"],
        str(data[f"{side}.name"]),
        tuple(data[f"{side}.notes"].tolist()),
        data[f"{side}.origin"],
        data[f"{side}.source_numbers"],
    )


def _hypothesis(data: dict[str, Any], i: int, name: str) -> Hypothesis:
    measures, values = data[f"{i}.measures"].tolist(), data[f"{i}.values"].tolist()
    return Hypothesis(
        name,
        float(data[f"{i}.score"]),
        dict(zip(measures, values, strict=True)),
        data[f"{i}.map_ba"],
        data[f"{i}.map_ab"],
        bool(data[f"{i}.mirrored"]),
    )
