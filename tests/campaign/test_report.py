"""The report stands alone: no network, no script but its own, and text stays text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rdkit import Chem

from driftworks.campaign import Result, figures, report, status
from driftworks.campaign.spec import Target
from driftworks.errors import UserError

EVIL = "</script><script>alert('x')</script><img src=x onerror=alert(1)>&amp;"


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tag, attributes = self.elements[-1] if self.elements else ("", {})
        if tag == "script" and self.cdata_elem == "script":
            self.scripts.append((attributes, data))
        elif self.cdata_elem is None:
            self.text += f"{data} "


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, double: Any) -> Result:
    """A finished campaign with a malicious name."""
    from driftworks.campaign import Campaign

    campaign = Campaign(
        name=EVIL,
        targets={"weight": 75.0, "tpsa": (20, 30)},
        n=12,
        batch=12,
        seed=5,
        oracles={"xtb": False},
        output=str(tmp_path_factory.mktemp("report")),
    )
    oracles = {"shape": double.Descriptors3D()}
    return campaign.run(progress=False, generator=double.Double(), oracles=oracles)


@pytest.fixture(scope="module")
def html(made: Result) -> str:
    return (made.folder / "report.html").read_text()


def test_a_script_in_a_name_stays_text(html: str) -> None:
    page = Page(html)
    assert EVIL in page.text
    assert "alert('x')" not in "".join(text for _, text in page.scripts)
    assert not any(tag == "img" for tag, _ in page.elements)
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)


def test_the_page_carries_exactly_the_scripts_that_its_policy_allows(html: str) -> None:
    page = Page(html)
    policy = next(
        attrs["content"]
        for tag, attrs in page.elements
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None and "default-src 'none'" in policy
    assert "unsafe-eval" not in policy and "http" not in policy
    run = [text for attrs, text in page.scripts if attrs.get("type") != "application/json"]
    hashes = [base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in run]
    assert len(run) == 2
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == set(hashes)


def test_nothing_is_fetched_from_anywhere(html: str) -> None:
    library = (files("driftworks.campaign") / "assets" / "3Dmol-min.js").read_text(encoding="utf-8")
    assert library in html
    page = Page(html.replace(library, ""))
    for tag, attrs in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name, value in attrs.items():
            if name in ("src", "href", "xlink:href", "action", "data"):
                assert value is not None and value.startswith(("#", "data:")), (tag, name, value)
    style = re.findall(r"url\(([^)]*)\)", html.replace(library, ""))
    assert all(target.strip("\"' ").startswith(("#", "data:")) for target in style)
    assert "@import" not in html.replace(library, "")


def test_the_vendored_viewer_has_its_licence_beside_it() -> None:
    assets = files("driftworks.campaign") / "assets"
    licence = (assets / "3Dmol-LICENSE.txt").read_text(encoding="utf-8")
    assert "University of Pittsburgh" in licence and "Redistribution" in licence


def test_the_viewers_data_are_the_molecules_of_the_library(html: str, made: Result) -> None:
    data = next(
        text for attrs, text in Page(html).scripts if attrs.get("type") == "application/json"
    )
    assert "<" not in data
    molecules = json.loads(data)
    assert len(molecules) == min(len(made.table), 24)
    for molecule, smiles in zip(molecules, made.table["smiles"], strict=False):
        assert Chem.MolToSmiles(Chem.MolFromMolBlock(molecule["generated"])) == Chem.CanonSmiles(
            smiles
        )


def test_the_page_tells_the_funnel_the_scores_and_the_provenance(html: str, made: Result) -> None:
    text = " ".join(Page(html).text.split())
    for name, count in made.funnel.items():
        assert f"{name} {count}" in text
    assert f"generated {made.generated}" in text
    for word in ("weight is scored by rdkit", "tpsa is scored by shape", "rdkit 20", "torch 2"):
        assert word in text
    assert status(made.folder)["spec_sha256"] in text
    for smiles in made.table["smiles"][:3]:
        assert smiles in text


def test_a_report_made_again_is_the_same_report(made: Result, html: str) -> None:
    picture = (made.folder / "report.png").read_bytes()
    (made.folder / "report.html").unlink()
    assert report(made.folder) == made.folder / "report.html"
    again = (made.folder / "report.html").read_text()
    assert (made.folder / "report.png").read_bytes() == picture
    # Only the line on how the run ended can differ: the first report was written before it did.
    pattern = r"(wrote this report|ended after \d+ s)"
    assert re.sub(pattern, "", again) == re.sub(pattern, "", html)


def test_an_unfinished_campaign_has_a_report_too(drive: Any, double: Any, tmp_path: Path) -> None:
    class Dying(double.Descriptors3D):
        def answer(self, asked: Any) -> Any:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        drive(measure={"shape": Dying()}, pictures=True)
    text = Page(report(tmp_path / "out").read_text()).text
    assert "not finished yet" in text and "in progress" in text


def test_there_is_no_report_where_there_is_no_campaign(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no campaign here"):
        report(tmp_path)


def test_the_picture_is_a_png_of_some_size(made: Result) -> None:
    from PIL import Image

    with Image.open(made.folder / "report.png") as picture:
        assert picture.format == "PNG" and picture.size[0] > 1000
        assert len(picture.convert("L").getcolors() or []) > 50


def achieved(name: str, target: Target, values: list[float], **known: Any) -> figures.Achieved:
    x = np.array(values)
    return figures.Achieved(
        name,
        known.get("unit", ""),
        "xtb",
        target,
        x,
        np.ones(len(x), dtype=bool),
        np.array(known.get("validated", [np.nan] * len(x))),
    )


@pytest.mark.parametrize(
    "case",
    [
        [],
        [achieved("mu", Target(value=4.0), [np.nan, np.nan])],
        [achieved("mu", Target(value=4.0), [2.0])],
        [achieved("mu", Target(goal="max"), [2.0, 2.0], validated=[np.nan, 2.5])],
        [
            achieved("mu", Target(value=4.0), [2.0, 3.0], validated=[2.1, np.nan]),
            achieved("gap", Target(range=(5.0, 6.0)), [5.0, 7.0], unit="eV"),
            achieved("alpha", Target(goal="min"), [1.0, np.nan], unit="bohr^3"),
        ],
    ],
)
def test_figures_hold_for_any_number_and_kind_of_targets(case: list) -> None:
    svg = figures.targets_svg(case)
    assert (svg == "") == (not any(np.isfinite(a.values).any() for a in case))
    if svg:
        assert svg.startswith("<svg") and "<dc:date>" not in svg
        assert svg == figures.targets_svg(case)
    assert figures.overview("t", "l", [], case).startswith(b"\x89PNG")


def test_units_are_printed_as_chemists_write_them() -> None:
    assert [figures.symbol(u) for u in ("debye", "angstrom^2", "bohr^3", "eV", "")] == [
        "D",
        "Å²",
        "bohr³",
        "eV",
        "",
    ]


@pytest.mark.slow
def test_a_browser_without_network_shows_the_page_without_complaint(made: Result) -> None:
    """Chromium, offline: the scripts run under the policy, and nothing is logged as an error."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--virtual-time-budget=8000",
        "--enable-logging=stderr",
        "--dump-dom",
        (made.folder / "report.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not complaints, complaints
    assert "<canvas" in done.stdout and "No. 1" in done.stdout
