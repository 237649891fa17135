"""The pages of docs/core, one a file of core/, made from the docstrings.

    python docs/build.py            write the pages
    python docs/build.py --check    exit 1 if a page is not what its file says now

A page is the file's own text: the mathematics it opens with, then every public name with its
signature and docstring. Modules are read, not imported, so the pages need no dependencies.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE, PAGES = ROOT / "core", ROOT / "docs" / "core"

#: The order in which to read the core, by subject.
SUBJECTS = {
    "Between noise and data": ["paths", "warps", "formula", "spaces", "process", "predict",
                               "charts", "bridges", "transport", "ctmc", "so3", "frames"],
    "Sampling": ["grids", "tables", "solvers", "correctors", "reverse", "movers", "sample",
                 "guide", "keys", "even", "workers"],
    "Weights, likelihood, editing": ["weigh", "feynman_kac", "steer", "particles", "ode",
                                     "likelihood", "edit"],
    "Training and distillation": ["train", "times", "regularise", "context", "run", "watch",
                                  "checkpoint", "shelf", "distill", "student", "flowmap",
                                  "project", "quantise"],
    "Proof and diagnosis": ["laws", "bridge_laws", "diagnose", "distances", "features",
                            "bootstrap"],
}


def text(docstring: str) -> str:
    """A docstring as Markdown: single backticks, tables of ==== rules as preformatted text."""
    lines, out, fenced = docstring.splitlines(), [], False
    for i, line in enumerate(lines):
        rule = re.fullmatch(r"\s*=+(\s+=+)+\s*", line) is not None
        if rule and not fenced:
            out.append("```text")
            fenced = True
        out.append(line)
        ends = i + 1 == len(lines) or not lines[i + 1].strip()
        if fenced and rule and ends:
            out.append("```")
            fenced = False
    return re.sub(r"(?<!`)``(?!`)", "`", "\n".join(out))


def signature(node: ast.FunctionDef, name: str) -> str:
    """``name(arguments) -> result`` as it stands in the file, wrapped."""
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    call = f"{name}({ast.unparse(node.args)}){returns}"
    return "\n".join(textwrap.wrap(call, 96, subsequent_indent="    ", break_long_words=False))


def _public(body: list[ast.stmt]) -> list[ast.FunctionDef]:
    return [
        node for node in body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
        and ast.get_docstring(node)
    ]


def page(path: Path) -> str:
    """The page of one file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    head = ast.get_docstring(tree) or ""
    title, _, rest = head.partition("\n")
    parts = [f"# core/{path.name}", "", text(title), "", text(rest.strip("\n")), ""]
    names = next(
        (ast.literal_eval(node.value) for node in tree.body
         if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
         and node.targets[0].id == "__all__"),
        [],
    )
    for node in tree.body:
        if getattr(node, "name", None) not in names:
            continue
        doc = ast.get_docstring(node) or ""  # type: ignore[arg-type]
        if isinstance(node, ast.FunctionDef):
            parts += [f"## {node.name}", "", "```python", signature(node, node.name), "```", "",
                      text(doc), ""]
        elif isinstance(node, ast.ClassDef):
            parts += [f"## {node.name}", "", text(doc), ""]
            for method in _public(node.body):
                parts += ["```python", signature(method, f"{node.name}.{method.name}"), "```", "",
                          text(ast.get_docstring(method) or ""), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def index(files: list[Path]) -> str:
    """docs/core/README.md: every file with its first line, by subject."""
    first = {
        path.stem: (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")
        .splitlines()[0] for path in files
    }
    listed = [name for names in SUBJECTS.values() for name in names]
    if sorted(listed) != sorted(first):
        missing = sorted(set(first) ^ set(listed))
        raise SystemExit(f"docs/build.py: SUBJECTS and core/ differ in {', '.join(missing)}")
    intro = (PAGES / "intro.md").read_text(encoding="utf-8").rstrip()
    parts = [intro, ""]
    for subject, names in SUBJECTS.items():
        parts += [f"## {subject}", "", "| file | what it is |", "|---|---|"]
        parts += [f"| [{name}.py]({name}.md) | {text(first[name])} |" for name in names]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def build() -> dict[Path, str]:
    """Every page by its path."""
    files = sorted(path for path in SOURCE.glob("*.py") if path.stem != "__init__")
    pages = {PAGES / f"{path.stem}.md": page(path) for path in files}
    return pages | {PAGES / "README.md": index(files)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a page is stale")
    check = parser.parse_args().check
    pages = build()
    old = {path for path in PAGES.glob("*.md") if path.name != "intro.md"}
    stale = [p for p, new in pages.items() if not p.is_file() or p.read_text("utf-8") != new]
    gone = sorted(old - pages.keys())
    if check:
        for path in [*stale, *gone]:
            print(f"{path.relative_to(ROOT)} is not what its file says; run: make docs")
        return 1 if stale or gone else 0
    for path in stale:
        path.write_text(pages[path], encoding="utf-8")
    for path in gone:
        path.unlink()
    print(f"{len(pages)} pages, {len(stale)} changed, {len(gone)} removed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
