"""A description is validated at the door, has one identity, and complains in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftworks.campaign import Campaign, Target, load
from driftworks.campaign.spec import differences
from driftworks.errors import UserError

FULL = """
name = "all of it"
model = "qm9"
n = 20
max_generated = 200
batch = 10
seed = 4
guidance = 1.5
steps = 50
output = "runs/x"
[targets.mu]
value = 4.0
tolerance = 0.3
[targets.gap]
range = [5.0, 6.0]
weight = 2.0
[targets.qed]
goal = "max"
[filters]
elements = ["O", "C", "N"]
heavy_atoms = [4, 9]
exclude = ["[N-]=[N+]"]
alerts = ["PAINS"]
[filters.properties.sa]
max = 5.0
[oracles.xtb]
max_strain = 1.0
[oracles.dft]
n = 3
preset = "screen"
[selection]
size = 10
diversity = 0.5
"""


def test_a_toml_file_and_the_same_in_python_are_one_campaign(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(FULL)
    python = Campaign(
        selection={"diversity": 0.5, "size": 10},
        targets={
            "qed": "max",
            "gap": Target(range=(5, 6), weight=2),
            "mu": {"value": 4, "tolerance": 0.3},
        },
        oracles={"dft": {"n": 3}, "xtb": {"max_strain": 1}},
        filters={
            "properties": {"sa": (None, 5)},
            "alerts": ["PAINS"],
            "exclude": ["[N-]=[N+]"],
            "heavy_atoms": (4, 9),
            "elements": ["N", "C", "O", "C"],
        },
        name="all of it",
        model="qm9",
        n=20,
        max_generated=200,
        batch=10,
        seed=4,
        guidance=1.5,
        steps=50,
        output="another/folder",
    )
    assert load(tmp_path / "c.toml").sha256 == python.sha256
    assert Campaign(**json.loads(python.canonical)).sha256 == python.sha256


@given(st.permutations([("n", 5), ("seed", 2), ("batch", 3), ("targets", {"b": 1.0, "a": "min"})]))
def test_the_identity_ignores_the_order_of_keys(pairs: list) -> None:
    reference = Campaign(n=5, seed=2, batch=3, targets={"a": "min", "b": 1.0})
    assert Campaign(**dict(pairs)).sha256 == reference.sha256


def test_changes_replace_what_the_file_says_and_none_leaves_it(tmp_path: Path) -> None:
    (tmp_path / "some_name.toml").write_text("n = 3")
    campaign = Campaign.load(tmp_path / "some_name.toml", seed=9, output=None)
    assert (campaign.n, campaign.seed, campaign.name) == (3, 9, "some_name")
    assert campaign.folder == Path("runs/some_name")


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("n = ", ["not a TOML file"]),
        ("n = 3\nn = 4", ["not a TOML file"]),
        ("nn = 3", ["unknown key 'nn'", "max_generated", "targets"]),
        ("n = 'many'", ["n:", "'many'"]),
        ("n = 0", ["n:", "greater than or equal to 1", "not 0"]),
        ("n = 9\nmax_generated = 3", ["max_generated 3 is below n 9"]),
        ("guidance = nan", ["guidance", "finite"]),
        ("[targets.mu]\nvalu = 4", ["unknown key 'valu' in [targets.mu]", "tolerance", "value"]),
        ("[targets.mu]", ["targets.mu", "exactly one of value, range, goal"]),
        ("[targets.mu]\nvalue = 4\ngoal = 'max'", ["targets.mu", "exactly one"]),
        ("[targets]\nmu = 'high'", ["targets.mu.goal", "'min' or 'max'", "'high'"]),
        ("[targets]\nmu = [6, 5]", ["targets.mu", "must rise"]),
        ("[targets]\nmu = true", ["targets.mu", "True"]),
        ("[targets.mu]\nvalue = 0", ["targets.mu", "needs a tolerance"]),
        ("[oracles.dft]\npreset = 'fast'", ["oracles.dft.preset", "'screen' or 'qm9'", "'fast'"]),
        ("[oracles.dft]\ntimeout = 3", ["unknown key 'timeout' in [oracles.dft]", "wall"]),
        ("[oracles.orca]\nn = 3", ["unknown key 'orca' in [oracles]", "dft, rdkit, xtb"]),
        ("[oracles.xtb]\nrelax = false\nmax_strain = 1", ["max_strain needs relax"]),
        ("[filters]\nexclude = ['C(']", ["filters.exclude", "'C('", "SMARTS"]),
        ("[filters]\nelements = ['C', 'Xx']", ["filters.elements", "'Xx'"]),
        ("[filters]\nheavy_atoms = [9, 4]", ["filters.heavy_atoms", "[9, 4]"]),
        ("[filters]\nalerts = ['PAIN']", ["filters.alerts.0", "'PAINS'", "'PAIN'"]),
        ("[filters.properties.sa]", ["filters.properties.sa", "min, max or both"]),
        ("[filters.properties.sa]\nlow = 1", ["unknown key 'low' in [filters.properties.sa]"]),
        ("[selection]\ndiversity = 2", ["selection.diversity", "not 2"]),
        ("n = 0\nbatch = 0", ["(and 1 more)"]),
        ('name = "two\\nlines"', ["name", "one printable line"]),
    ],
)
def test_a_bad_file_is_one_line_that_names_the_file_the_value_and_the_choices(
    toml: str, words: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(toml)
    with pytest.raises(UserError) as caught:
        load(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and "\n" not in line and "pydantic" not in line
    assert all(word in line for word in words), line


def test_files_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"n = \xff\xfe")
    for path in (tmp_path / "none.toml", tmp_path, tmp_path / "binary.toml"):
        with pytest.raises(UserError, match=str(path)) as caught:
            load(path)
        assert "\n" not in str(caught.value)


def test_python_mistakes_are_user_errors_too() -> None:
    with pytest.raises(UserError, match="unknown key 'target'; choose from .*targets"):
        Campaign(target={"mu": 4})


def test_differences_name_every_changed_entry() -> None:
    a = Campaign(n=5, targets={"mu": 4.0}, oracles={"dft": True})
    b = Campaign(n=6, targets={"mu": 4.0}, oracles={"dft": {"n": 2}})
    changed = differences(json.loads(a.canonical), json.loads(b.canonical))
    assert changed == ["n: 5 -> 6", "oracles.dft.n: 4 -> 2"]
    assert differences(json.loads(a.canonical), json.loads(a.canonical)) == []
    c = Campaign(n=5, targets={"mu": 4.0})
    removed = differences(json.loads(a.canonical), json.loads(c.canonical))
    assert removed and all(d.startswith("oracles.dft") for d in removed)


@pytest.mark.parametrize(
    ("target", "x", "error"),
    [
        (Target(value=4), 3.5, -0.5),
        (Target(range=(1, 2)), 1.5, 0.0),
        (Target(range=(1, 2)), 2.25, 0.25),
        (Target(range=(1, 2)), 0.5, -0.5),
    ],
)
def test_the_error_is_the_signed_distance_from_the_target(
    target: Target, x: float, error: float
) -> None:
    assert target.error(x) == error
