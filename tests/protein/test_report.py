"""Pictures and the page of an evaluation: what they show, that they are safe, and whole files."""

from __future__ import annotations

import re

import numpy as np
import pytest

from driftworks.errors import UserError
from driftworks.protein import evaluation, ideal, picture, report
from driftworks.protein.chains import Chains
from driftworks.protein.reconstruct import full_backbones


@pytest.fixture(scope="module")
def chains() -> Chains:
    points = [ideal.bundle(60), ideal.hairpin(40), np.full((50, 3), np.nan), ideal.helix(40)]
    return Chains.of(points, ids=["<b>bundle", "hairpin", "failed", "helix"])


@pytest.fixture(scope="module")
def page(chains) -> tuple[evaluation.Report, str]:
    found = evaluation.evaluate(
        chains, backbones=full_backbones, resamples=20, folds=4
    )
    return found, report.page(found, chains, lines=["a <script>alert(1)</script> file"])


def test_the_page_shows_every_figure_and_every_flag(page) -> None:
    found, text = page
    for name, figure in found.figures.items():
        assert re.search(rf">{name}</td><td class=\"r\">{figure.value:.3f}<", text) or (
            not np.isfinite(figure.value)
        )
    native = found.natives["ramachandran"]
    assert f"favoured Ramachandran regions; natives {100 * native:.1f} %" in text
    assert found.flags and all(f">{name}</td><td>" in text for name in found.flags)
    assert "4 backbones requested" in text and "1 coordinates that are not finite" in text
    assert "no training chains were given" in text and "designability" in text


def test_names_cannot_bring_code_and_nothing_is_fetched(page) -> None:
    _, text = page
    assert "<script" not in text and "&lt;script&gt;alert(1)" in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    sources = re.findall(r"(?:src|href)=\"([^\"#]{1,30})", text)
    assert sources and all(source.startswith("data:") for source in sources)


def test_equal_evaluations_make_equal_pages(page, chains) -> None:
    found, text = page
    again = report.page(found, chains, lines=["a <script>alert(1)</script> file"])
    assert again == text


def test_a_set_without_a_single_finite_chain_has_a_page_too(tmp_path) -> None:
    bad = Chains.of([np.full((20, 3), np.nan)] * 2)
    found = evaluation.evaluate(bad, backbones=full_backbones, resamples=10)
    path = report.write_report(found, bad, tmp_path / "new" / "bad.html")
    assert "No chain is finite" in path.read_text()
    with pytest.raises(UserError, match=r"\.html"):
        report.write_report(found, bad, tmp_path / "bad.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        report.write_report(found, bad, tmp_path / "file" / "bad.html")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["bad.html", "file", "new"]


def share(image: np.ndarray, colour: str) -> float:
    """Of the pixels that are coloured, how many are nearest in hue to one of the colours."""
    from matplotlib.colors import rgb_to_hsv, to_rgb

    hsv = rgb_to_hsv(image.reshape(-1, 3))
    drawn = hsv[(image.reshape(-1, 3) < 0.99).any(axis=1)]
    hue = rgb_to_hsv(to_rgb(picture.COLOURS[colour]))[0]
    return float(((np.abs(drawn[:, 0] - hue) < 0.06) & (drawn[:, 1] > 0.2)).mean())


def test_helices_are_orange_and_strands_blue() -> None:
    helix, pair = picture.cartoon(ideal.helix(30)), picture.cartoon(ideal.hairpin(30))
    assert share(helix, "a") > 0.6 and share(helix, "b") < 0.02
    assert share(pair, "b") > 0.5 and share(pair, "a") < 0.02


def test_a_cartoon_does_not_turn_with_the_chain(rng, turn) -> None:
    points = ideal.bundle(50)
    points[:, 0] *= 1.3  # no two axes alike
    image = picture.cartoon(points, (120, 120))
    moved = picture.cartoon(points @ turn().T + rng.normal(size=3) * 50, (120, 120))
    assert np.abs(image - moved).mean() < 0.01
    assert (image < 0.98).any(axis=2).mean() > 0.05 and image.shape == (120, 120, 3)


def test_the_mirror_image_is_drawn_as_another_chain() -> None:
    points = ideal.bundle(50)
    points[:, 0] *= 1.3
    image, mirrored = (picture.cartoon(p, (120, 120)) for p in (points, ideal.mirrored(points)))
    assert np.abs(image - mirrored).mean() > 0.01


def test_a_ribbon_has_no_holes() -> None:
    image = picture.cartoon(ideal.helix(12), (300, 300))
    ink = (image < 0.995).any(axis=2)
    inner = ink[1:-1, :-2] & ink[1:-1, 2:] & ink[:-2, 1:-1] & ink[2:, 1:-1]
    assert not (inner & ~ink[1:-1, 1:-1]).any() and ink.mean() > 0.05


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_shortest_chains_can_be_drawn(n: int) -> None:
    image = picture.cartoon(ideal.helix(n), (64, 64))
    assert np.isfinite(image).all() and (image < 0.9).any()


@pytest.mark.parametrize("form", picture.SUFFIXES)
def test_equal_chains_make_equal_sheets(form, chains, tmp_path) -> None:
    magic = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[form]
    paths = [picture.draw(chains[1:3], tmp_path / f"{k}{form}", title="a") for k in "ab"]
    shots = [path.read_bytes() for path in paths]
    assert shots[0] == shots[1] and shots[0].startswith(magic)


def test_a_ramachandran_plot_shows_where_residues_are() -> None:
    from io import BytesIO

    from PIL import Image

    plots = []
    for torsions in (ideal.HELIX, ideal.STRAND):
        shot = picture.ramachandran([ideal.backbone([torsions] * 40)], kind="png")
        image = np.asarray(Image.open(BytesIO(shot)).convert("RGB"), float) / 255
        blue = (image[..., 2] - image[..., 0]) > 0.3
        rows, columns = np.nonzero(blue)
        plots.append((columns.mean() / image.shape[1], rows.mean() / image.shape[0]))
    (helix_x, helix_y), (strand_x, strand_y) = plots
    assert strand_x < helix_x < 0.5 and strand_y < 0.35 < helix_y


def test_what_cannot_be_drawn_is_refused(chains, tmp_path) -> None:
    for call, message in (
        (lambda: picture.draw(chains, tmp_path / "a.gif"), "choose from"),
        (lambda: picture.draw(Chains.of([]), tmp_path / "a.png"), "no chains"),
        (lambda: picture.draw(chains[2], tmp_path / "a.png"), "no chains"),
        (lambda: picture.cartoon(np.zeros((1, 3))), "n > 1"),
        (lambda: picture.cartoon(np.full((5, 3), np.nan)), "finite"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    assert list(tmp_path.iterdir()) == []
