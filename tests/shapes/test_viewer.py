"""The page of a match: self-contained, harmless whatever the names are, and all numbers in it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from driftworks.errors import UserError
from driftworks.shapes import viewer
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.result import Match

Arrays = tuple[NDArray[np.float64], NDArray[np.int64]]

NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\"'@DATA@@TITLE@"


class _Page(HTMLParser):
    """Tags, and the content of scripts and of the title."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.title = ""
        self._inside = ""
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside == "title":
            self.title += data


@pytest.fixture
def match(lump: Arrays, rng: np.random.Generator) -> Match:
    points, faces = lump
    order = rng.permutation(len(points))
    place = np.argsort(order)
    a, b = Mesh(points, faces, "one"), Mesh(points[order], place[faces], "two")
    return Match(
        a, b, order, place, np.eye(3), np.eye(3), rng.uniform(size=len(b)),
        rng.uniform(size=len(a)), False, 0.875, "waves", notes=("a note",),
    )  # fmt: skip


def written(match: Match, file: Path) -> tuple[_Page, dict[str, Any]]:
    viewer.page(match, file)
    page = _Page(file.read_text("utf-8"))
    return page, json.loads(page.scripts[0])


def unpacked(text: str, kind: str) -> NDArray[Any]:
    return np.frombuffer(base64.b64decode(text), kind)


def test_the_page_holds_the_maps_and_the_shapes(match: Match, tmp_path: Path) -> None:
    page, data = written(match, tmp_path / "match.html")
    assert page.title == "one → two"
    one, two = data["shapes"]
    assert np.array_equal(unpacked(one["partner"], "<u4"), match.map_ab)
    assert np.array_equal(unpacked(two["partner"], "<u4"), match.map_ba)
    assert np.array_equal(unpacked(one["faces"], "<u4").reshape(-1, 3), match.a.faces)
    points = unpacked(two["points"], "<f4").reshape(-1, 3)
    wanted = match.b.normalised().vertices
    gaps = [np.linalg.norm(x[:, None] - x[None], axis=2) for x in (points[:50], wanted[:50])]
    np.testing.assert_allclose(*gaps, atol=1e-5)
    # corresponding vertices have one colour
    colours = [unpacked(s["place"], "u1").reshape(-1, 3) for s in (one, two)]
    assert np.array_equal(colours[1], colours[0][match.map_ba])
    trust = unpacked(two["confidence"], "u1") / 255
    np.testing.assert_allclose(trust, match.confidence_b, atol=0.5 / 255)
    assert (data["score"], data["hypothesis"], data["failed"]) == (0.875, "waves", False)
    assert data["notes"] == ["a note"]


def test_the_page_asks_for_nothing_else(match: Match, tmp_path: Path) -> None:
    page, _ = written(match, tmp_path / "match.html")
    assert not {"link", "iframe", "img", "object", "embed"} & set(page.tags)
    assert not {"src", "href"} & {name for name, _ in page.attributes}
    text = (tmp_path / "match.html").read_text("utf-8")
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|fetch\(|XMLHttpRequest|import\(|@import|url\(", text)


def test_names_stay_names(match: Match, tmp_path: Path) -> None:
    plain, _ = written(match, tmp_path / "plain.html")
    nasty = replace(match, a=replace(match.a, name=NASTY, notes=(NASTY,)), hypothesis=NASTY)
    page, data = written(nasty, tmp_path / "nasty.html")
    assert page.tags == plain.tags
    assert page.title == f"{NASTY} → two"
    assert data["shapes"][0]["name"] == NASTY and data["notes"][0] == f"{NASTY}: {NASTY}"
    assert page.scripts[1] == plain.scripts[1]


def test_the_page_sets_text_and_never_markup() -> None:
    text = (Path(viewer.__file__).parent / "assets" / "viewer.html").read_text("utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)


def test_the_script_is_valid(match: Match, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed, nothing to parse JavaScript with")
    page, _ = written(match, tmp_path / "match.html")
    (tmp_path / "page.js").write_text(page.scripts[1], "utf-8")
    done = subprocess.run(
        [node, "--check", str(tmp_path / "page.js")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_clouds_have_no_faces_and_are_shown_as_points(
    sphere: Callable[..., Arrays], tmp_path: Path
) -> None:
    cloud = Mesh(sphere(2)[0], np.zeros((0, 3), np.int64))
    every = np.arange(len(cloud))
    found = Match(
        cloud, cloud, every, every, np.eye(3), np.eye(3), every * 0.0, every * 0.0, True, 0.1, "x"
    )
    _, data = written(found, tmp_path / "cloud.html")
    assert data["failed"] and data["shapes"][0]["faces"] == ""
    assert data["shapes"][0]["radius"] > 0


def test_mistakes_are_named(match: Match, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=".pdf"):
        viewer.page(match, tmp_path / "match.pdf")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        viewer.page(match, tmp_path / "file" / "match.html")
