"""Files of every format: what is written reads back, what others write is understood, and a file
that is damaged is an error and never another mesh.
"""

from __future__ import annotations

import os
import struct

import numpy as np
import pytest
import trimesh

from driftworks.errors import UserError
from driftworks.shapes import files
from driftworks.shapes.files import read, write
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.repair import clean

EXACT = (".off", ".obj", ".ply")
CLOUDS = (".off", ".obj", ".ply", ".xyz")


@pytest.fixture
def box(bumpy_box):
    return clean(*bumpy_box(1), name="box")


def lines_of(mesh, before="", faces_before="3 ", first=0):
    rows = [before + " ".join(map(repr, p)) for p in mesh.vertices.tolist()]
    return rows + [faces_before + " ".join(str(v + first) for v in f) for f in mesh.faces.tolist()]


# There and back.


@pytest.mark.parametrize("ending", EXACT)
@pytest.mark.parametrize("scale", [1e-70, 1.0, 1e70])
def test_a_mesh_comes_back_bit_for_bit(ending, scale, bumpy_box, tmp_path):
    points, faces = bumpy_box(2)
    mesh = clean(scale * points, faces)
    write(mesh, tmp_path / f"shape{ending}")
    again = read(tmp_path / f"shape{ending}")
    assert again.digest == mesh.digest
    assert again.name == "shape" and again.notes == ()


@pytest.mark.parametrize("ending", CLOUDS)
def test_a_cloud_comes_back_bit_for_bit(ending, ellipsoid, tmp_path):
    cloud = clean(ellipsoid(2)[0])
    write(cloud, str(tmp_path / f"shape{ending.upper()}"))
    again = read(str(tmp_path / f"shape{ending.upper()}"))
    assert again.is_cloud and again.digest == cloud.digest


def test_stl_brings_single_precision_triangles_that_are_put_together(box, tmp_path):
    write(box, tmp_path / "box.stl")
    again = read(tmp_path / "box.stl")
    assert len(again) == len(box) and len(again.faces) == len(box.faces)
    assert again.notes == (f"merged {3 * len(box.faces) - len(box)} duplicate vertices",)
    corners = box.vertices[box.faces].reshape(-1, 3).astype(np.float32)
    np.testing.assert_array_equal(again.vertices[again.origin], corners)


@pytest.mark.parametrize("ending", [".off", ".obj", ".ply", ".stl"])
def test_trimesh_reads_what_is_written(ending, box, tmp_path):
    write(box, tmp_path / f"box{ending}")
    other = trimesh.load(tmp_path / f"box{ending}", process=False)
    tolerance = 1e-6 if ending == ".stl" else 0
    np.testing.assert_allclose(other.triangles, box.vertices[box.faces], atol=tolerance)


@pytest.mark.parametrize("ending", ["off", "obj", "ply", "stl", "stl_ascii", "ply_ascii"])
def test_what_trimesh_writes_is_read(ending, box, tmp_path):
    solid = trimesh.Trimesh(box.vertices, box.faces, process=False)
    kind, _, text = ending.partition("_")
    content = (
        trimesh.exchange.ply.export_ply(solid, encoding="ascii")
        if ending == "ply_ascii"
        else solid.export(file_type=ending)
    )
    path = tmp_path / f"box.{kind}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    mesh = read(path)
    found = mesh.vertices[mesh.origin]
    expected = box.vertices if kind != "stl" else box.vertices[box.faces].reshape(-1, 3)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len(mesh.faces) == len(box.faces)


# What else is in files of this kind.


def test_off_takes_one_line_headers_comments_colours_and_blank_lines(box, tmp_path):
    n, m = len(box), len(box.faces)
    vertices, faces = lines_of(box)[:n], lines_of(box)[n:]
    coloured = [line + " 0.5 0.5 0.5 1" for line in vertices]
    variants = {
        "one line": [f"OFF {n} {m} 0", *vertices, *faces],
        "two numbers": ["off", f"{n} {m}", *vertices, *faces],
        "comments": ["OFF # shape", "# one", f"{n} {m} 0 # n m e", "", *vertices, "# two", *faces],
        "colours": ["COFF", f"{n} {m} 0", *coloured, *(f"{face} 255 0 0" for face in faces)],
        "normals": ["NOFF", f"{n} {m} 0", *(f"{line} 0 0 1" for line in vertices), *faces],
        "more after": ["OFF", f"{n} {m} 0", *vertices, *faces, "anything"],
    }
    for name, lines in variants.items():
        (tmp_path / "box.off").write_bytes("\r\n".join(lines).encode())
        assert read(tmp_path / "box.off").digest == box.digest, name


def test_obj_skips_what_is_no_geometry_and_keeps_every_vertex_in_place(box, tmp_path):
    n = len(box)
    vertices, faces = lines_of(box, "v ")[:n], box.faces
    slashes = [f"f {a + 1}/{b + 1}/1 {b + 1}/2/3 {c + 1}/7/{a + 1}" for a, b, c in faces]
    relative = [f"f {a - n}//1 {b - n}//1 {c - n}//1" for a, b, c in faces]
    head = ["# a box", "mtllib box.mtl", "o Box", "vn 0 0 1", "vt 0.5 0.5"]
    groups = ["g arm", "usemtl skin", "s 1"]
    for body in (slashes, relative):
        text = "\n".join([*head, *vertices, *groups, *body[:9], "g leg", *body[9:]])
        (tmp_path / "box.obj").write_text(text)
        assert read(tmp_path / "box.obj").digest == box.digest
    # an unused vertex in front, which trimesh would drop without a word
    text = "\n".join(["v 9 9 9", *vertices, *(f"f {a + 2} {b + 2} {c + 2}" for a, b, c in faces)])
    (tmp_path / "box.obj").write_text(text)
    mesh = read(tmp_path / "box.obj")
    assert mesh.digest == box.digest
    np.testing.assert_array_equal(mesh.origin[1:], np.arange(n))
    assert mesh.origin[0] == np.linalg.norm(box.vertices - 9, axis=1).argmin()


def test_obj_lines_may_be_continued(box, tmp_path):
    text = "\n".join(lines_of(box, "v ", "f ", 1)).replace("f ", "f \\\n")
    (tmp_path / "box.obj").write_text(text)
    assert read(tmp_path / "box.obj").digest == box.digest


def ply(mesh, encoding, polygons=None, coordinate="double"):
    """A PLY file with extra properties and elements, as others write them."""
    polygons = mesh.faces.tolist() if polygons is None else polygons
    order = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}[encoding]
    header = [
        "ply", f"format {encoding} 1.0", "comment made by hand", "obj_info none",
        "element camera 1", "property list uchar float view", "property short id",
        f"element vertex {len(mesh)}", f"property {coordinate} x", "property uchar red",
        f"property {coordinate} y", f"property {coordinate} z",
        f"element face {len(polygons)}", "property uchar flag",
        "property list uchar uint vertex_indices", "property list uchar float texcoord",
        "element edge 1", "property int vertex1", "property int vertex2", "end_header",
    ]  # fmt: skip
    if order:
        c = "d" if coordinate == "double" else "f"
        body = struct.pack(order + "Bffh", 2, 0.5, 1.5, 7)
        for x, y, z in mesh.vertices.tolist():
            body += struct.pack(f"{order}{c}B{c}{c}", x, 200, y, z)
        for p in polygons:
            k = len(p)
            body += struct.pack(f"{order}BB{k}IB{k}f", 1, k, *p, k, *([0.25] * k))
        body += struct.pack(order + "ii", 0, 1)
    else:
        rows = ["2 0.5 1.5 7", *(f"{x!r} 200 {y!r} {z!r}" for x, y, z in mesh.vertices.tolist())]
        for p in polygons:
            corners = " ".join(map(str, p))
            rows.append(f"1 {len(p)} {corners} {len(p)} {' '.join(['0.25'] * len(p))}")
        body = "\n".join([*rows, "0 1", ""]).encode()
    return "\n".join([*header, ""]).encode() + body


@pytest.mark.parametrize("encoding", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_ply_skips_what_is_no_geometry_in_all_encodings(encoding, box, tmp_path):
    (tmp_path / "box.ply").write_bytes(ply(box, encoding))
    assert read(tmp_path / "box.ply").digest == box.digest
    (tmp_path / "box.ply").write_bytes(ply(box, encoding, coordinate="float"))
    rounded = read(tmp_path / "box.ply").vertices
    np.testing.assert_allclose(rounded, box.vertices, rtol=1e-7, atol=1e-9)


def polygons_of(sphere):
    """A sphere of triangles, quads and one hexagon, and the same in triangles by hand."""
    points, faces = sphere(2)
    quads, used = [], set()
    for f, (a, b, c) in enumerate(faces.tolist()):
        for g, other in enumerate(faces.tolist()):
            if f in used or g in used or g <= f or len({a, b, c} & set(other)) != 2:
                continue
            (far,) = set(other) - {a, b, c}
            (near,) = {a, b, c} - set(other)
            k = [a, b, c].index(near)
            ring = [a, b, c][k:] + [a, b, c][:k]
            quads.append([ring[0], ring[1], far, ring[2]])
            used |= {f, g}
        if len(quads) == 30:
            break
    mixed = [face for f, face in enumerate(faces.tolist()) if f not in used]
    mixed[7:7] = quads
    return points, mixed


@pytest.mark.parametrize("kind", ["off", "obj", "ascii", "binary_little_endian"])
def test_polygons_are_cut_into_fans(kind, sphere, tmp_path):
    points, mixed = polygons_of(sphere)
    triangles = [(p[0], b, c) for p in mixed for b, c in zip(p[1:-1], p[2:], strict=True)]
    shape = Mesh(points, triangles)
    rows = lines_of(Mesh(points, []))
    if kind == "off":
        text = ["OFF", f"{len(points)} {len(mixed)} 0", *rows]
        text += [f"{len(p)} {' '.join(map(str, p))}" for p in mixed]
        content = "\n".join(text).encode()
    elif kind == "obj":
        text = ["v " + row for row in rows]
        text += ["f " + " ".join(str(v + 1) for v in p) for p in mixed]
        content = "\n".join(text).encode()
    else:
        content = ply(shape, kind, mixed)
    path = tmp_path / f"shape.{kind if kind in ('off', 'obj') else 'ply'}"
    path.write_bytes(content)
    mesh = read(path)
    np.testing.assert_array_equal(mesh.faces, triangles)
    assert mesh.notes == ("cut 30 faces with more than three corners",)


def test_xyz_takes_commas_comments_and_more_columns(ellipsoid, tmp_path):
    cloud = clean(ellipsoid(1)[0])
    rows = lines_of(cloud)
    for lines in (
        ["# points", *(row + " 255 0 0" for row in rows)],
        [row.replace(" ", ", ") for row in rows],
        [row.replace(" ", "\t") for row in rows],
    ):
        (tmp_path / "cloud.xyz").write_text("\n".join(lines))
        assert read(tmp_path / "cloud.xyz").digest == cloud.digest


# Damage.


@pytest.mark.parametrize("ending", [".off", ".ply", ".stl"])
def test_a_truncated_file_is_an_error(ending, box, tmp_path):
    path = tmp_path / f"box{ending}"
    write(box, path)
    whole = path.read_bytes()
    # text without its last digits may be another number, so it is cut at ends of lines
    cuts = [*range(1, len(whole) - 1, 97), len(whole) - 1]
    if ending == ".off":
        cuts = [i for i in range(len(whole) - 1) if whole[i : i + 1] == b"\n"][::5]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="box"):
            read(path)


@pytest.mark.parametrize("encoding", ["ascii", "binary_little_endian"])
def test_a_truncated_ply_of_others_is_an_error(encoding, sphere, tmp_path):
    points, mixed = polygons_of(sphere)
    whole = ply(Mesh(points, []), encoding, mixed)
    for cut in range(10, len(whole) - 8, 211):
        (tmp_path / "box.ply").write_bytes(whole[:cut])
        with pytest.raises(UserError, match="box"):
            read(tmp_path / "box.ply")


def test_a_truncated_text_stl_is_an_error(box, tmp_path):
    whole = trimesh.Trimesh(box.vertices, box.faces, process=False).export(file_type="stl_ascii")
    for cut in (20, 100, len(whole) // 2, len(whole) - 12):
        (tmp_path / "box.stl").write_text(whole[:cut])
        with pytest.raises(UserError, match="box.stl"):
            read(tmp_path / "box.stl")


@pytest.mark.parametrize("ending", [".off", ".obj", ".ply", ".stl", ".xyz"])
def test_random_damage_gives_a_mesh_or_an_error_for_the_user(ending, sphere, tmp_path, rng):
    points, faces = sphere(1)
    path = tmp_path / f"box{ending}"
    write(Mesh(points, [] if ending == ".xyz" else faces), path)
    whole = path.read_bytes()
    for _ in range(30):
        broken = bytearray(whole)
        for at in rng.integers(0, len(whole) if rng.random() < 0.5 else 200, 3):
            broken[at] = rng.integers(0, 256)
        path.write_bytes(bytes(broken))
        try:
            assert len(read(path)) >= 20
        except UserError as error:
            assert "box" in str(error)


CONTENTS = {
    "box.off": [
        (b"", "is empty"),
        (b" \n ", "is empty"),
        (b"ply\nformat ascii 1.0\n", "begins with 'ply', not with OFF"),
        (b"OFF BINARY\n\0\0", "binary OFF is not supported"),
        (b"OFF\n\0\0\0", "it is binary, text was expected"),
        (b"4OFF\n1 0 0\n0 0 0 1", "more than three dimensions"),
        (b"OFF", "numbers of vertices and faces are missing"),
        (b"OFF\n0 0 0", "it has no vertices"),
        (b"OFF\n-3 2 0", "numbers of vertices and faces are missing"),
        (b"OFF\nx y z", "the line of counts is 'x y', not whole numbers"),
        (b"OFF\n2000000 0 0\n1 2 3", "announces 2,000,000 vertices, the limit is 200,000"),
        (b"OFF\n9 9 0\n1 2 3", "9 vertices and 9 faces are announced, 1 lines follow"),
        (b"OFF\n2 0 0\n1 2 3\n1 2", "vertex 1 is '1 2', not three numbers"),
        (b"OFF\n2 0 0\n1 2 3\n1 2 z", "vertex 1 is '1 2 z', not three numbers"),
        (b"OFF\n1 1 0\n1 2 3\n3 0 0", "face 0 is '3 0 0': 3 corners were announced"),
        (b"OFF\n1 1 0\n1 2 3\n2 0 0", "face 0 has 2 corners"),
        (b"OFF\n1 1 0\n1 2 3\n3 0 0 7", "face 0 has vertex 7, counted from 0, but there are 1"),
        (b"OFF\n1 0 0\n1 2 3", "1 usable vertices"),
    ],
    "box.obj": [
        (b"hello world", "no line of a vertex"),
        (b"v 1 2 3\nf 0 1 1", "face 0 has vertex 0; OBJ counts from 1"),
        (b"v 1 2 3\nf 1 1 2", "face 0 has vertex 1, counted from 0, but there are 1 vertices"),
        (b"v 1 2 3\nf 1 -2 1", "face 0 has vertex -1"),
        (b"v 1 2 3\nf 1 1", "face 0 has 2 corners"),
        (b"v 1 2\n", "vertex 0 is '1 2', not three numbers"),
        (b"v 1 2 3\nf a b c", "face 0 is 'a b c', not whole numbers"),
        (
            b"o cat\nv 1 2 3\nf 1 1 1\no dog\nf 1 1 1",
            r"2 objects \(cat, dog\); save the one that is meant",
        ),
    ],
    "box.ply": [
        (b"solid", "begins with b'solid', not with ply"),
        (b"ply\nformat ascii 1.0\n", "the header has no end"),
        (b"ply\nformat odd 1.0\nend_header\n", "it has the format 'odd'"),
        (b"ply\nend_header\n", "it has the format ''"),
        (b"ply\nformat ascii 1.0\nproperty int x\nend_header\n", "the line 'property int x'"),
        (
            b"ply\nformat ascii 1.0\nelement vertex 3000000\nproperty int x\nend_header\n",
            "announces 3,000,000 vertices",
        ),
        (b"ply\nformat ascii 1.0\nelement vertex x\nend_header\n", "line 'element vertex x'"),
        (b"ply\nformat ascii 1.0\nelement vertex -1\nend_header\n", "line 'element vertex -1'"),
        (
            b"ply\nformat ascii 1.0\nelement vertex 1\nproperty long x\nend_header\n",
            "line 'property long x'",
        ),
        (
            b"ply\nformat ascii 1.0\nelement vertex 1\nproperty int x\nproperty int x\n"
            b"end_header\n",
            "line 'property int x'",
        ),
        (
            b"ply\nformat ascii 1.0\nelement vertex 1\nproperty int x\nend_header\n4\n",
            "no vertices with x, y and z",
        ),
        (b"ply\nformat binary_little_endian 1.0\nend_header\n", "no vertices with x, y and z"),
        (
            b"ply\nformat ascii 1.0\nelement vertex 1\nproperty int x\nproperty int y\n"
            b"property int z\nelement tristrips 1\nproperty list int int vertex_indices\n"
            b"end_header\n0 0 0\n1 0\n",
            "its faces have no property vertex_indices",
        ),
        (
            b"ply\nformat ascii 1.0\nelement vertex 1\nproperty int x\nend_header\nfour\n",
            "vertex 0 is 'four'",
        ),
    ],
    "box.stl": [
        (b"OFF\n", "its length of 4 bytes is not that of the 0 triangles"),
        (b"\0" * 84, "it has no triangles"),
        (b"solid a\nfacet", "there is no endsolid"),
        (b"solid a\nvertex 1 2\nendsolid a", "it has no triangles"),
        (b"solid a\n" + b"vertex 1 2 x\n" * 3 + b"endsolid a", "box.stl"),
    ],
    "box.xyz": [
        (b"# only this", "it has no vertices"),
        (b"3\nwater\nO 0 0 0\n", "line 0 is '3', not three numbers"),
        (b"1 2 3\n1 2", "line 1 is '1 2', not three numbers"),
        (b"1 2 nan\n" * 30, "vertex 0 has coordinates"),
    ],
}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [(name, *case) for name, cases in CONTENTS.items() for case in cases],
)
def test_a_file_that_is_wrong_says_what_is_wrong(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)


def test_an_stl_of_several_solids_is_an_error_with_their_names(box, tmp_path):
    one = trimesh.Trimesh(box.vertices, box.faces, process=False).export(file_type="stl_ascii")
    two = one.replace("solid ", "solid second", 1)
    (tmp_path / "two.stl").write_text(one.replace("solid ", "solid first", 1) + two)
    with pytest.raises(UserError, match=r"2 solids \(first, second\); save the one"):
        read(tmp_path / "two.stl")


def test_missing_files_folders_and_other_endings_are_errors(tmp_path):
    with pytest.raises(UserError, match=r"no mesh at .*none.off: there is no such file"):
        read(tmp_path / "none.off")
    (tmp_path / "folder.off").mkdir()
    with pytest.raises(UserError, match="folder.off cannot be read"):
        read(tmp_path / "folder.off")
    for name in ("a.glb", "a", "a.off.gz"):
        with pytest.raises(UserError, match="meshes are files of .off, .obj, .ply, .stl, .xyz"):
            read(tmp_path / name)


def test_an_error_of_the_mesh_names_the_file(sphere, tmp_path):
    points, faces = sphere(1)
    points[5, 0] = np.nan
    text = ["OFF", f"{len(points)} {len(faces)} 0", *lines_of(Mesh(points, faces))]
    (tmp_path / "hollow.off").write_text("\n".join(text))
    with pytest.raises(UserError, match="mesh 'hollow': vertex 5 has coordinates"):
        read(tmp_path / "hollow.off")


# Writing.


def test_what_a_format_cannot_hold_is_refused(box, ellipsoid, tmp_path):
    with pytest.raises(UserError, match="XYZ holds points only"):
        write(box, tmp_path / "box.xyz")
    with pytest.raises(UserError, match="STL holds triangles only"):
        write(clean(ellipsoid(1)[0]), tmp_path / "cloud.stl")
    with pytest.raises(UserError, match="STL is single precision and cannot hold"):
        write(Mesh(1e60 * box.vertices, box.faces), tmp_path / "box.stl")
    with pytest.raises(UserError, match="ending '.gltf'"):
        write(box, tmp_path / "box.gltf")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        write(box, tmp_path / "file" / "box.off")


def test_a_write_that_fails_leaves_the_old_file(box, tmp_path, monkeypatch):
    path = tmp_path / "box.off"
    write(box, path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="cannot write .*box.off: No space left"):
        write(Mesh(2 * box.vertices, box.faces), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["box.off"]


def test_every_format_is_read_and_written():
    assert set(files._READERS) == set(files._WRITERS) == set(files.FORMATS)
