"""Where commands take graphs from: a family drawn afresh, a stored set, a file, a data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from driftworks.errors import UserError

if TYPE_CHECKING:
    from networkx import Graph

__all__ = ["SOURCES", "Source", "declared", "source_of", "undeclared"]

#: What `source_of` understands, for help texts.
SOURCES = (
    "a family (two_communities, tree, planar, ...), qm9, FILE.npz:NAME for a stored set, or a file "
    "of graphs (.jsonl, .g6, .graphml, .graphml.zip, .npz) or molecules (.smi, .csv, .sdf)"
)

# A family is drawn with this seed, so that what one command trains on the next can hold against it.
FAMILY_SEED = 0
# The sizes of the sets of Martinkus et al. (ICML 2022): to train, to validate, to test.
FAMILY_SPLIT = {"train": 128, "valid": 32, "test": 40}


@dataclass(frozen=True)
class Source:
    """Graphs in networkx, or molecules in RDKit (None: a record that is none); ``text`` says which.

    ``molecules`` tells the two apart.
    """

    graphs: list[Any]
    molecules: bool
    text: str


def source_of(
    source: str, split: str | None = None, progress: bool = True, properties: Iterable[str] = ()
) -> Source:
    """The graphs that ``source`` names: those of ``split`` where it has splits, else all.

    ``properties`` of a table of molecules become properties of the molecules.
    Raises `UserError` for a name that is neither a source nor a file, and for a damaged file.
    """
    from driftworks.data import graphs as sets

    if source in sets.FAMILIES:
        return _family(source, split)
    if source in ("qm9", "ccd"):
        return _table(source, split, progress, properties)
    file, _, name = source.rpartition(":")
    if file and name and not Path(source).exists():
        if not Path(file).exists():
            raise UserError(f"no file {file}")
        if not Path(file).is_dir() and Path(file).suffix.lower() != ".npz":
            raise UserError(f"{file} has no set {name!r}: only .npz files hold several sets")
        return _stored(source, name, Path(file), split)
    path = Path(source)
    if not path.exists():
        raise UserError(_unknown(source))
    if path.is_dir() and (path / sets.FILE).is_file() or path.suffix.lower() == ".npz":
        held = sets.names(path)
        if len(held) > 1:
            choices = ", ".join(f"{path}:{known}" for known in held)
            raise UserError(f"{path} holds several sets of graphs; choose one of {choices}")
        if held:
            return _stored(source, held[0], path, split)
        return _table(source, split, progress, properties)
    if path.is_dir() and not any(path.glob("*.graphml")):
        return _table(source, split, progress, properties)

    from driftworks.graphgen import files

    found = files.read(path)
    return Source(found, not path.is_dir() and files.of_molecules(path), source)


def _unknown(source: str) -> str:
    from driftworks.data import graphs as sets

    if source in sets.NAMES:
        return (
            f"the set {source!r} has no public address: name the file that holds it, "
            f"FILE.npz:{source}, or draw a family afresh: {', '.join(sets.FAMILIES)}"
        )
    known = ", ".join([*sets.FAMILIES, "qm9"])
    return f"no data set or file {source!r}; choose {known}, FILE.npz:NAME or a file"


def _family(name: str, split: str | None) -> Source:
    from driftworks.data import graphs as sets

    drawn = sets.generate(name, sum(FAMILY_SPLIT.values()), FAMILY_SEED)
    if split is None:
        return Source(drawn, False, f"{name}, drawn afresh")
    start = 0
    for part, count in FAMILY_SPLIT.items():
        if part == split:
            return Source(
                drawn[start : start + count], False, f"the {split} split of {name}, drawn afresh"
            )
        start += count
    raise UserError(f"unknown split {split!r}; choose from {', '.join(FAMILY_SPLIT)}")


def _stored(source: str, name: str, path: Path, split: str | None) -> Source:
    from driftworks.data import graphs as sets
    from driftworks.graphgen import files

    found = sets.load(name, path)
    if len(found) and int(found.nodes.max()) > files.MAX_NODES:
        raise UserError(
            f"{path}: a graph has {int(found.nodes.max())} nodes, the limit is {files.MAX_NODES}"
        )
    named = split is not None and len(found.rows(split)) > 0
    chosen = found.graphs(split if named else None)
    if not chosen:
        raise UserError(f"{source} holds no graph")
    return Source(chosen, False, f"the {split} split of {source}" if named else source)


def _table(
    source: str, split: str | None, progress: bool, properties: Iterable[str]
) -> Source:
    from rdkit import Chem, rdBase

    from driftworks.commands.data import molecules

    table = molecules(source, progress=progress)
    named = split is not None and len(table.rows(split)) > 0
    chosen = table.where(split=split if named else None, clean=True)
    if not len(chosen):
        raise UserError(f"{source} holds no molecule")
    with rdBase.BlockLogs():
        read = partial(Chem.MolFromSmiles, sanitize=False)
        mols = [read(text) if text else None for text in chosen.smiles]
    for name in chosen.properties.keys() & set(properties):
        for mol, value in zip(mols, chosen.properties[name].tolist(), strict=True):
            if mol is not None:
                mol.SetDoubleProp(name, value)
    return Source(mols, True, f"the {split} split of {source}" if named else source)


def undeclared(
    graphs: Sequence[Graph], on_nodes: Iterable[str], on_edges: Iterable[str]
) -> tuple[list[str], list[str]]:
    """Attributes of nodes and of edges that occur beside those named."""
    nodes = {name for graph in graphs for _, data in graph.nodes(data=True) for name in data}
    edges = {name for graph in graphs for *_, data in graph.edges(data=True) for name in data}
    return (
        sorted(nodes.difference(on_nodes), key=str),
        sorted(edges.difference(on_edges), key=str),
    )


def declared(
    graphs: Sequence[Graph], on_nodes: Iterable[str], on_edges: Iterable[str], ignore: Iterable[str]
) -> list[Graph]:
    """The graphs without the attributes to ignore; `UserError` where others are not declared."""
    left = set(ignore)
    nodes, edges = undeclared(graphs, on_nodes, on_edges)
    for what, found, choices in (
        ("nodes", nodes, "--node-attribute {0} if it is a category, --feature {0} if a number"),
        ("edges", edges, "--edge-attribute {0} if it is a category, --weight {0} if a number"),
    ):
        if unknown := [name for name in found if name not in left]:
            how = choices.format(unknown[0])
            raise UserError(
                f"the {what} have an attribute {unknown[0]!r}: say {how}, or --ignore {unknown[0]}"
            )
    if not (left & {*nodes, *edges}):
        return list(graphs)
    out = []
    for graph in graphs:
        copy = graph.copy()
        records = [*copy.nodes(data=True), *((0, data) for *_, data in copy.edges(data=True))]
        for _, data in records:
            for name in left:
                data.pop(name, None)
        out.append(copy)
    return out
