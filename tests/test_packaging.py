"""The layout, the lists of dependencies and the wheel hang together."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

DOMAINS = ("campaign", "core", "data", "graphgen", "molgen", "protein", "shapes")
LINKS = (*DOMAINS, "weights")
SOURCE = (*LINKS, "src", "pyproject.toml", "README.md", "LICENSE", "THIRDPARTY.md")


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    with (root / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]


@pytest.fixture(scope="module")
def direct(project: dict[str, Any]) -> dict[str, Requirement]:
    lines = project["dependencies"] + sum(project["optional-dependencies"].values(), [])
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): r for r in requirements if r.name != "driftworks"}


@pytest.fixture(scope="module")
def pins(root: Path) -> dict[str, Version]:
    lines = (root / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in pairs}


@pytest.mark.parametrize("name", LINKS)
def test_each_package_folder_is_a_link_to_the_top_level_folder(root: Path, name: str) -> None:
    link = root / "src" / "driftworks" / name
    assert link.is_symlink(), f"{link} must be a link (git needs core.symlinks = true)"
    assert os.readlink(link) == os.path.join("..", "..", name)
    assert (root / name).is_dir()


@pytest.mark.parametrize("name", DOMAINS)
def test_a_top_level_folder_cannot_be_imported_under_its_bare_name(root: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=root, capture_output=True, text=True
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode != 0
    assert last.startswith("ImportError") and f"driftworks.{name}" in last


def test_every_direct_dependency_is_pinned_within_its_bounds(
    direct: dict[str, Requirement], pins: dict[str, Version]
) -> None:
    assert set(pins) == set(direct)
    for name, requirement in direct.items():
        assert pins[name] in requirement.specifier, f"{requirement} excludes {pins[name]}"


def test_every_direct_dependency_has_a_lower_bound_and_no_upper_one(
    direct: dict[str, Requirement],
) -> None:
    for requirement in direct.values():
        assert [s.operator for s in requirement.specifier] == [">="], str(requirement)


def test_the_extra_all_holds_every_extra_that_is_not_for_tests(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    (everything,) = (Requirement(line) for line in extras["all"])
    assert everything.extras == set(extras) - {"all", "test"}


def test_the_conda_environment_asks_for_what_the_project_declares(
    root: Path, project: dict[str, Any]
) -> None:
    environment = yaml.safe_load((root / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    versions = dict(line.split("=") for line in conda if "=" in line)
    assert versions["python"] in SpecifierSet(project["requires-python"])
    assert "pip" in conda
    constraints, editable = pip["pip"]
    assert constraints.split() == ["-c", "constraints.txt"]
    assert (root / constraints.split()[1]).is_file()
    found = re.fullmatch(r"-e \.\[(\w+)\]", editable)
    assert found and found[1] in project["optional-dependencies"]


def test_every_third_party_package_is_in_the_list_of_licences(
    root: Path, direct: dict[str, Requirement]
) -> None:
    words = set(re.findall(r"[\w-]+", (root / "THIRDPARTY.md").read_text()))
    assert set(direct) <= words, set(direct) - words


def test_the_package_imports_every_default_dependency(
    root: Path, project: dict[str, Any]
) -> None:
    code = "\n".join(
        path.read_text()
        for folder in (*DOMAINS, "src")
        for path in (root / folder).rglob("*.py")
    )
    named = set(re.findall(r"^\s*(?:from|import) (\w+)", code, re.MULTILINE))
    for line in project["dependencies"]:
        name = Requirement(line).name
        assert name.replace("-", "_") in named, f"nothing imports {name}"


def test_nothing_in_the_package_can_read_a_pickle(root: Path) -> None:
    forbidden = re.compile(
        r"\b(?:import|from) (?:pickle|dill|joblib|marshal|shelve)\b"
        r"|torch\.load\(|allow_pickle=True|weights_only=False|\byaml\.load\(|(?<![.\w])eval\("
    )
    for folder in (*DOMAINS, "src/driftworks"):
        for path in (root / folder).rglob("*.py"):
            found = forbidden.search(path.read_text())
            assert found is None, f"{path}: {found[0] if found else ''}"


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    # setuptools writes beside the sources, so it gets a copy of them, links kept
    copy = tmp_path_factory.mktemp("source")
    for name in SOURCE:
        if (root / name).is_file():
            shutil.copy(root / name, copy)
        else:
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(root / name, copy / name, symlinks=True, ignore=ignore)
    place = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
        + ["--quiet", "--wheel-dir", str(place), str(copy)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (built,) = place.glob("driftworks-*.whl")
    return zipfile.ZipFile(built)


def test_a_wheel_holds_every_source_file_and_nothing_outside_the_package(
    root: Path, wheel: zipfile.ZipFile
) -> None:
    names = {info.filename for info in wheel.infolist() if not info.is_dir()}
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"driftworks"}
    expected = {
        f"driftworks/{folder}/{path.relative_to(root / folder).as_posix()}"
        for folder in DOMAINS
        for path in (root / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected |= {
        f"driftworks/weights/{path.relative_to(root / 'weights').as_posix()}"
        for path in (root / "weights").glob("*/*")
    }
    assert expected - names == set()
    assert {"driftworks/py.typed", "driftworks/cli.py", "driftworks/errors.py"} <= names


def test_a_wheel_holds_real_files_and_no_links(root: Path, wheel: zipfile.ZipFile) -> None:
    sizes = {info.filename: info.file_size for info in wheel.infolist()}
    links = [info.filename for info in wheel.infolist() if (info.external_attr >> 28) == 0xA]
    assert links == []
    for name in DOMAINS:
        inside = f"driftworks/{name}/__init__.py"
        assert sizes[inside] == (root / name / "__init__.py").stat().st_size


def test_a_wheel_works_from_its_own_folder_away_from_the_checkout(
    wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    wheel.extractall(tmp_path / "site")
    code = "import driftworks.core, driftworks.shapes, sys; print(driftworks.core.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()) == tmp_path / "site" / "driftworks" / "core" / "__init__.py"


def _make(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=root,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@needs_make
def test_make_alone_lists_every_target(root: Path) -> None:
    listed = _make(root).stdout
    for target in ("campaign", "test", "test-all", "bench", "train-molgen", "lint"):
        assert re.search(rf"^make {target} ", listed, re.MULTILINE), target


@needs_make
def test_make_refuses_an_old_python_with_one_clear_line(root: Path, tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(root / name, tmp_path)
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")  # what `sys.exit(sys.version_info < (3, 11))` says there
    old.chmod(0o755)
    done = _make(tmp_path, "test", f"PYTHON={old}")
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr.splitlines()[0]
    assert not (tmp_path / ".venv").exists()


@needs_make
def test_make_installs_again_only_where_something_changed(root: Path, tmp_path: Path) -> None:
    """A pip that only writes down that it was called stands in for the real one."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(root / name, tmp_path)
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    python = binaries / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *install*) echo "$*" >> calls;; esac\n')
    python.chmod(0o755)

    def calls() -> int:
        log = tmp_path / "calls"
        return len(log.read_text().splitlines()) if log.exists() else 0

    assert _make(tmp_path, "venv").returncode == 0 and calls() == 1
    assert _make(tmp_path, "venv").returncode == 0 and calls() == 1
    stamp = tmp_path / ".venv" / ".ready"
    newer = stamp.stat().st_mtime + 10
    os.utime(tmp_path / "constraints.txt", (newer, newer))
    assert _make(tmp_path, "venv").returncode == 0 and calls() == 2
    os.utime(tmp_path / "constraints.txt", (newer - 100, newer - 100))
    assert _make(tmp_path, "venv").returncode == 0 and calls() == 2
    moved = tmp_path.with_name(tmp_path.name + " moved")
    tmp_path.rename(moved)
    assert _make(moved, "venv").returncode == 0
    assert len((moved / "calls").read_text().splitlines()) == 3
    moved.rename(tmp_path)


@needs_make
def test_a_failed_install_is_tried_again(root: Path, tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(root / name, tmp_path)
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    python = binaries / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *install*) exit 7;; esac\n')
    python.chmod(0o755)
    for _ in range(2):
        assert _make(tmp_path, "venv").returncode != 0
        assert not (tmp_path / ".venv" / ".ready").exists()


def test_the_pages_of_the_core_say_what_its_files_say(root):
    done = subprocess.run(
        [sys.executable, "docs/build.py", "--check"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
