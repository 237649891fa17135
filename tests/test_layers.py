"""Who may import whom: core no domain, a domain no other domain, and nobody the campaigns.

Imports are read from the syntax trees, those inside functions included.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOMAINS = ("molgen", "graphgen", "protein", "shapes")
ALLOWED = {
    "core": {"core", "errors"},
    "data": {"core", "data", "errors"},
    **{domain: {"core", "data", "errors", domain} for domain in DOMAINS},
    "campaign": {"core", "data", "errors", "campaign", *DOMAINS},
}


def imported(file):
    """The parts of driftworks that a file imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            inside = [f"driftworks.{alias.name}" for alias in node.names]
            names = inside if node.module == "driftworks" else [node.module or ""]
        else:
            continue
        for name in names:
            top, *rest = name.split(".")
            if top == "driftworks" and rest:
                yield rest[0]


@pytest.mark.parametrize("layer", ALLOWED)
def test_a_layer_imports_only_what_lies_below_it(layer):
    files = sorted((ROOT / layer).rglob("*.py"))
    assert files
    wrong = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files for name in imported(file)
        if name not in ALLOWED[layer] and name != "__version__"
    }
    assert not wrong


def test_an_import_in_a_function_is_seen(tmp_path):
    file = tmp_path / "a.py"
    source = "def f():\n    from driftworks import molgen\n    import driftworks.data.bonds\n"
    file.write_text(source)
    assert sorted(imported(file)) == ["data", "molgen"]
