r"""Meshes and point clouds from and to files: OFF, OBJ, PLY, STL, and XYZ for clouds.

Ground truth, landmarks and maps refer to vertices by their number in the file, so a reader may
neither drop, reorder nor duplicate them. trimesh reads and writes STL here, which has no vertices
to lose: each triangle brings its own three, and `repair.clean` merges them. The other formats are
read here, because trimesh 5 (with ``process=False`` too) drops the unused vertices of an OBJ and
splits those at seams of textures, takes a truncated OFF or ASCII PLY for a smaller mesh, and does
not read a binary PLY of triangles and quads, which is what Blender writes.

    OFF    OFF, COFF, NOFF and so on: the first three numbers of a vertex line are its place
    OBJ    v and f; normals, textures, materials, groups and lines are skipped; one object a file
    PLY    ASCII and binary, either byte order, lists of any lengths
    STL    binary and ASCII, one solid a file; single precision
    XYZ    one point a line, the first three numbers of it

Polygons are cut into fans from their first corner. Except STL, every format holds coordinates to
the last bit: numbers are written as doubles or as the shortest decimals that read back the same.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftworks.core.checkpoint import write_file
from driftworks.errors import UserError
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.repair import VERTEX_LIMIT, clean

__all__ = ["FORMATS", "read", "write"]

#: Endings of files that can be read and written.
FORMATS = (".off", ".obj", ".ply", ".stl", ".xyz")

Points = NDArray[np.float64]
Polygons = Sequence[Sequence[int]] | NDArray[Any]


class _Malformed(Exception):
    """What is wrong with a file's content."""


def read(path: Path | str) -> Mesh:
    """The mesh or point cloud in a file, repaired by `repair.clean` and named after the file.

    Raises `UserError` for a file that is missing, empty, truncated, of another type or with several
    meshes, and for meshes that `repair.clean` refuses.
    """
    path = Path(path)
    reader = _READERS[_kind(path)]
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"no mesh at {path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if not content.strip():
        raise UserError(f"{path} is empty")
    try:
        vertices, polygons = reader(content)
        if not len(vertices):
            raise _Malformed("it has no vertices")
        faces, cut = _fans(polygons, len(vertices))
    except _Malformed as error:
        kind = path.suffix[1:].upper()
        raise UserError(f"{path} cannot be read as {kind}: {error}") from None
    mesh = clean(vertices, faces, path.stem)
    if not cut:
        return mesh
    faces_cut = "1 face" if cut == 1 else f"{cut:,} faces"
    return replace(mesh, notes=(f"cut {faces_cut} with more than three corners", *mesh.notes))


def write(mesh: Mesh, path: Path | str) -> None:
    """Write a mesh or a point cloud; the ending of the path says the format.

    Either the whole file is there afterwards or what was there before. Raises `UserError` when the
    format is unknown or cannot hold this (a cloud as STL, faces as XYZ), or the place cannot be
    written.
    """
    path = Path(path)
    kind = _kind(path)
    if mesh.is_cloud and kind == ".stl":
        raise UserError("STL holds triangles only; write a point cloud as .ply, .off, .obj or .xyz")
    if not mesh.is_cloud and kind == ".xyz":
        raise UserError("XYZ holds points only; write a mesh as .ply, .off, .obj or .stl")
    content = _WRITERS[kind](mesh)
    write_file(path, content)


def _kind(path: Path) -> str:
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise UserError(
            f"{path} has the ending {path.suffix!r}; meshes are files of {', '.join(FORMATS)}"
        )
    return kind


def _fans(polygons: Polygons, count: int) -> tuple[NDArray[np.int64], int]:
    """Triangles (m, 3) in the order of the polygons, and how many polygons had more corners.

    Corners are checked here, where the number of the face is still that of the file.
    """
    if isinstance(polygons, np.ndarray) and polygons.ndim == 2 and polygons.shape[1] == 3:
        triangles, cut = polygons.astype(np.int64), 0
        source = np.arange(len(triangles))
    else:
        rows, origin, cut = [], [], 0
        for f, polygon in enumerate(polygons):
            if len(polygon) < 3:
                raise _Malformed(f"face {f} has {len(polygon)} corners")
            cut += len(polygon) > 3
            for b, c in zip(polygon[1:-1], polygon[2:], strict=True):
                rows.append((polygon[0], b, c))
                origin.append(f)
        triangles = np.array(rows, np.int64).reshape(-1, 3)
        source = np.array(origin, np.int64)
    wrong = (triangles < 0) | (triangles >= count)
    if wrong.any():
        f, k = (int(i) for i in np.argwhere(wrong)[0])
        raise _Malformed(
            f"face {source[f]} has vertex {triangles[f, k]}, counted from 0, "
            f"but there are {count} vertices"
        )
    return triangles, int(cut)


# Text.


def _lines(content: bytes, comment: str = "#") -> list[str]:
    """The lines that say something, without comments."""
    if b"\0" in content:
        raise _Malformed("it is binary, text was expected")
    text = content.decode("utf-8-sig", errors="replace")
    lines = (line.split(comment, 1)[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def _affordable(vertices: int) -> None:
    """Refuse a number that cannot come down to the limit, before millions of lines are read."""
    if vertices > 8 * VERTEX_LIMIT:
        raise _Malformed(
            f"it announces {vertices:,} vertices, the limit is {VERTEX_LIMIT:,}; decimate it first"
        )


def _coordinates(rows: Sequence[Sequence[str]], what: str = "vertex") -> Points:
    """(n, 3) the first three numbers of every row."""
    try:
        array = np.array([row[:3] for row in rows], np.float64)
        if array.ndim == 2 and array.shape[1] == 3:
            return array
    except ValueError:
        pass
    if not rows:
        return np.zeros((0, 3))
    for v, row in enumerate(rows):
        try:
            good = len([float(part) for part in row[:3]]) == 3
        except ValueError:
            good = False
        if not good:
            raise _Malformed(f"{what} {v} is {' '.join(row)!r:.60}, not three numbers")
    raise _Malformed("its vertices are no numbers")


def _integers(words: Sequence[str], what: str) -> list[int]:
    try:
        return [int(word) for word in words]
    except ValueError:
        raise _Malformed(f"{what} is {' '.join(words)!r:.60}, not whole numbers") from None


def _read_off(content: bytes) -> tuple[Points, Polygons]:
    if content[:20].split()[1:2] == [b"BINARY"]:
        raise _Malformed("binary OFF is not supported; save it as text or PLY")
    lines = _lines(content)
    keyword, *rest = lines[0].split() if lines else [""]
    if not keyword.upper().endswith("OFF"):
        raise _Malformed(f"it begins with {keyword!r:.20}, not with OFF")
    if {"4", "n"} & set(keyword[:-3]):
        raise _Malformed(f"{keyword} has vertices in more than three dimensions")
    # the counts stand on the line of the keyword or on the next
    lines = lines[1:] if not rest else [" ".join(rest), *lines[1:]]
    counts = _integers(lines[0].split()[:2], "the line of counts") if lines else []
    if len(counts) < 2 or min(counts) < 0:
        raise _Malformed("the numbers of vertices and faces are missing")
    number, faces = counts
    _affordable(number)
    body = lines[1 : 1 + number + faces]
    if len(body) < number + faces:
        raise _Malformed(
            f"it is truncated: {number:,} vertices and {faces:,} faces are announced, "
            f"{len(body):,} lines follow"
        )
    points = _coordinates([line.split(None, 3) for line in body[:number]])
    polygons = []
    for f, line in enumerate(body[number:]):
        words = line.split()
        size = _integers(words[:1], f"face {f}")[0]
        corners = _integers(words[1 : 1 + max(size, 0)], f"face {f}")
        if len(corners) != size:
            raise _Malformed(f"face {f} is {line!r:.60}: {size} corners were announced")
        polygons.append(corners)
    return points, _stacked(polygons)


def _stacked(polygons: list[list[int]]) -> Polygons:
    """An array where all are triangles, which is quicker."""
    if polygons and all(len(polygon) == 3 for polygon in polygons):
        return np.array(polygons, np.int64)
    return polygons


def _read_obj(content: bytes) -> tuple[Points, Polygons]:
    lines = _lines(content.replace(b"\\\r\n", b" ").replace(b"\\\n", b" "))
    rows: list[list[str]] = []
    polygons: list[list[int]] = []
    name = ""
    objects: dict[str, None] = {}
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "v":
            rows.append(rest.split())
        elif word == "f":
            objects[name] = None
            corners = []
            numbers = [corner.split("/", 1)[0] for corner in rest.split()]
            for v in _integers(numbers, f"face {len(polygons)}"):
                if v == 0:
                    raise _Malformed(f"face {len(polygons)} has vertex 0; OBJ counts from 1")
                # negative numbers count back from the last vertex so far
                corners.append(v - 1 if v > 0 else len(rows) + v)
            polygons.append(corners)
        elif word == "o":
            name = rest.strip()
    if len(objects) > 1:
        raise _Malformed(_several("objects", [shown or "(no name)" for shown in objects]))
    if not rows:
        raise _Malformed("it has no line of a vertex ('v x y z')")
    return _coordinates(rows), _stacked(polygons)


def _several(what: str, names: Sequence[str]) -> str:
    more = " ..." if len(names) > 5 else ""
    return (
        f"it holds {len(names)} {what} ({', '.join(names[:5])}{more}); "
        "save the one that is meant, or join them"
    )


def _read_xyz(content: bytes) -> tuple[Points, Polygons]:
    lines = _lines(content)
    return _coordinates([line.replace(",", " ").split() for line in lines], "line"), []


# PLY.

_PLY_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1",
    "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2",
    "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "int64": "i8", "uint64": "u8",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip


@dataclass
class _Element:
    """One kind of record in a PLY file: its number and its properties.

    properties: (name, type of a list's length or "", type), types as numpy writes them
    """

    name: str
    count: int
    properties: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, name: str, length: str, kind: str) -> None:
        if any(name == other for other, _, _ in self.properties):
            raise ValueError
        self.properties.append((name, length, kind))


def _read_ply(content: bytes) -> tuple[Points, Polygons]:
    encoding, elements, body = _ply_header(content)
    _affordable(max((element.count for element in elements if element.name == "vertex"), default=0))
    if encoding == "ascii":
        tables = dict(_ply_text(elements, body))
    else:
        tables = dict(_ply_binary(elements, body, "<" if "little" in encoding else ">"))
    vertex, face = tables.get("vertex", {}), tables.get("face", {})
    if not {"x", "y", "z"} <= vertex.keys():
        raise _Malformed("it has no vertices with x, y and z")
    points = np.stack([np.asarray(vertex[axis], np.float64) for axis in "xyz"], 1)
    corners = face.get("vertex_indices", face.get("vertex_index"))
    if corners is None:
        if face or "tristrips" in tables:
            raise _Malformed("its faces have no property vertex_indices")
        corners = []
    return points, corners


def _ply_header(content: bytes) -> tuple[str, list[_Element], bytes]:
    """(format, elements, bytes after the header)."""
    if content[:3] != b"ply":
        raise _Malformed(f"it begins with {content[:12]!r}, not with ply")
    encoding, elements, position = "", [], 0
    while True:
        stop = content.find(b"\n", position)
        if stop < 0:
            raise _Malformed("it is truncated: the header has no end")
        words = content[position:stop].decode("utf-8", errors="replace").split()
        position = stop + 1
        try:
            match words:
                case ["end_header"]:
                    break
                case ["format", encoding, *_]:
                    pass
                case ["element", name, count]:
                    elements.append(_Element(name, int(count)))
                    if int(count) < 0:
                        raise ValueError
                case ["property", "list", length, kind, name]:
                    types = _PLY_TYPES[length], _PLY_TYPES[kind]
                    elements[-1].add(name, *types)
                case ["property", kind, name]:
                    elements[-1].add(name, "", _PLY_TYPES[kind])
        except (IndexError, KeyError, ValueError):
            line = " ".join(words)
            raise _Malformed(f"its header has the line {line!r:.60}") from None
    if encoding not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise _Malformed(f"it has the format {encoding!r}")
    return encoding, elements, content[position:]


def _cut_short(element: _Element, there: int) -> _Malformed:
    return _Malformed(
        f"it is truncated: {element.count:,} of {element.name} are announced, {there:,} are there"
    )


Table = dict[str, Any]


def _ply_text(elements: list[_Element], body: bytes) -> Iterator[tuple[str, Table]]:
    """(name, columns) of every element; a list property is a column of lists."""
    lines = iter([line for line in body.decode("utf-8", errors="replace").splitlines() if line])
    for element in elements:
        rows = [line.split() for _, line in zip(range(element.count), lines, strict=False)]
        if len(rows) < element.count:
            raise _cut_short(element, len(rows))
        table: Table = {name: [] for name, _, _ in element.properties}
        for r, row in enumerate(rows):
            at = 0
            try:
                for name, length, kind in element.properties:
                    number = float if kind[0] == "f" else int
                    if length:
                        stop = at + 1 + int(row[at])
                        values = [number(word) for word in row[at + 1 : stop]]
                        if len(values) != int(row[at]):
                            raise ValueError
                        table[name].append(values)
                        at = stop
                    else:
                        table[name].append(number(row[at]))
                        at += 1
            except (IndexError, ValueError):
                shown = " ".join(row)
                raise _Malformed(f"{element.name} {r} is {shown!r:.60}") from None
        yield element.name, table


def _ply_binary(
    elements: list[_Element], body: bytes, order: str
) -> Iterator[tuple[str, Table]]:
    """(name, columns) of every element; a list property is an array (count, length) where all
    lists are of one length, else a list of arrays.
    """
    at = 0
    for element in elements:
        if not element.count or not element.properties:
            yield element.name, {}
            continue
        record = _first_record(element, body, at, order)
        there = (len(body) - at) // record.itemsize if record.itemsize else 0
        table: Table = {}
        if there >= element.count:
            rows = np.frombuffer(body, record, element.count, at)
            lengths = [name for name in record.names or () if name.startswith("#")]
            if all((rows[name] == rows[name][0]).all() for name in lengths):
                table = {name: rows[name] for name, _, _ in element.properties}
                at += record.itemsize * element.count
        if not table:
            table, at = _ragged(element, body, at, order)
        yield element.name, table


def _first_record(element: _Element, body: bytes, at: int, order: str) -> np.dtype[Any]:
    """The type of all records, if lists have the lengths that they have in the first."""
    fields: list[tuple[Any, ...]] = []
    for name, length, kind in element.properties:
        if not length:
            fields.append((name, order + kind))
            continue
        offset = at + np.dtype(fields).itemsize
        width = np.dtype(length).itemsize
        if offset + width > len(body):
            raise _cut_short(element, 0)
        size = int(np.frombuffer(body, order + length, 1, offset)[0])
        if not 0 <= size <= len(body):
            raise _Malformed(f"a list of {element.name} 0 has {size} entries")
        fields += [("#" + name, order + length), (name, order + kind, (size,))]
    return np.dtype(fields)


def _ragged(element: _Element, body: bytes, at: int, order: str) -> tuple[Table, int]:
    """Records with lists of different lengths, one by one."""
    table: Table = {name: [] for name, _, _ in element.properties}
    types = [
        (name, np.dtype(order + length) if length else None, np.dtype(order + kind))
        for name, length, kind in element.properties
    ]
    for r in range(element.count):
        for name, length, kind in types:
            size = 1
            if length is not None:
                if at + length.itemsize > len(body):
                    raise _cut_short(element, r)
                size = int(np.frombuffer(body, length, 1, at)[0])
                at += length.itemsize
            stop = at + max(size, 0) * kind.itemsize
            if stop > len(body):
                raise _cut_short(element, r)
            values = np.frombuffer(body, kind, max(size, 0), at)
            table[name].append(values.tolist() if length is not None else values[0])
            at = stop
    return table, at


# STL.


def _read_stl(content: bytes) -> tuple[Points, Polygons]:
    from trimesh.exchange.stl import HeaderError, load_stl_ascii, load_stl_binary

    text = content[:5].lower() == b"solid"
    try:
        loaded = load_stl_binary(io.BytesIO(content))
    except HeaderError:
        if not text:
            triangles = int.from_bytes(content[80:84], "little")
            raise _Malformed(
                f"its length of {len(content):,} bytes is not that of the {triangles:,} triangles "
                "it announces; it is truncated or no STL"
            ) from None
        if b"endsolid" not in content.lower():
            raise _Malformed("it is truncated: there is no endsolid") from None
        try:
            with warnings.catch_warnings():
                # numpy warns of text that is no number and then leaves out the rest
                warnings.simplefilter("error")
                loaded = load_stl_ascii(io.BytesIO(content))
        except (ValueError, DeprecationWarning) as error:
            raise _Malformed(f"{error}") from None
    if "geometry" in loaded:
        names = list(loaded["geometry"])
        raise _Malformed(_several("solids", names) if names else "it has no triangles")
    return np.asarray(loaded["vertices"], np.float64), np.asarray(loaded["faces"])


# Writers.


def _words(rows: NDArray[Any], before: str = "") -> list[str]:
    """Lines of numbers; decimals are the shortest that read back as the same double."""
    return [before + " ".join(map(repr, row)) for row in rows.tolist()]


def _text(lines: Sequence[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()


def _write_off(mesh: Mesh) -> bytes:
    counts = f"{len(mesh)} {len(mesh.faces)} 0"
    return _text(["OFF", counts, *_words(mesh.vertices), *_words(mesh.faces, "3 ")])


def _write_obj(mesh: Mesh) -> bytes:
    return _text([*_words(mesh.vertices, "v "), *_words(mesh.faces + 1, "f ")])


def _write_xyz(mesh: Mesh) -> bytes:
    return _text(_words(mesh.vertices))


def _write_ply(mesh: Mesh) -> bytes:
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(mesh)}"]
    header += [f"property double {axis}" for axis in "xyz"]
    faces = np.zeros(len(mesh.faces), [("size", "u1"), ("corners", "<i4", (3,))])
    if len(faces):
        header += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
        faces["size"], faces["corners"] = 3, mesh.faces
    return _text([*header, "end_header"]) + mesh.vertices.astype("<f8").tobytes() + faces.tobytes()


def _write_stl(mesh: Mesh) -> bytes:
    import trimesh

    largest = float(np.abs(mesh.vertices).max())
    if largest > float(np.finfo(np.float32).max):
        raise UserError(f"STL is single precision and cannot hold {largest:.1g}; scale the mesh")
    surface = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    return bytes(trimesh.exchange.stl.export_stl(surface))


_READERS: dict[str, Callable[[bytes], tuple[Points, Polygons]]] = {
    ".off": _read_off,
    ".obj": _read_obj,
    ".ply": _read_ply,
    ".stl": _read_stl,
    ".xyz": _read_xyz,
}
_WRITERS: dict[str, Callable[[Mesh], bytes]] = {
    ".off": _write_off,
    ".obj": _write_obj,
    ".ply": _write_ply,
    ".stl": _write_stl,
    ".xyz": _write_xyz,
}
