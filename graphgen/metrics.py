r"""What a set of generated graphs is worth: each number with its interval and that of real data.

    connectivity, validity      in the family (`validity`), of the requested
    uniqueness                  isomorphism classes, of the requested
    novelty                     graphs that are no copy of a training graph, of the requested
    vun                         classes that are valid and novel, of the requested
    copied                      graphs isomorphic to a training graph, of the requested
    nodes, edges, triangles     means over the delivered: nodes, edges, triangles a node
    degree, clustering, orbit,  MMD^2 against the reference (`mmd`): published and biased, as the
    spectral, nspdk             mean over random subsets of the reference's size; and unbiased, with
                                interval and p-value

Beside each stands the same figure of real data: rates and means of the reference set itself, MMD^2
of the training set against the reference. No generator can be expected below that floor; one that
scores below it has copied, or was lucky. A sample that could not be made counts as a failure in
every rate and as a single isolated node in every MMD.

Of molecules the rates are those of `molecules`, novelty and uniqueness go by canonical SMILES.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftworks.core.bootstrap import Statistic, estimate, mean, ratio
from driftworks.errors import UserError
from driftworks.graphgen import nspdk
from driftworks.graphgen.convert import molecule_of, networkx_of_pyg, to_networkx
from driftworks.graphgen.descriptors import adjacencies, describe
from driftworks.graphgen.graph import Graphs
from driftworks.graphgen.isomorphism import SECONDS, classes, leaks
from driftworks.graphgen.mmd import HONEST, Comparison, compare, kernels_of
from driftworks.graphgen.report import HEADLINE, Four, Report
from driftworks.graphgen.validity import holds

__all__ = ["Report", "evaluate", "evaluate_molecules"]

#: Graphs of one set that enter a kernel matrix; larger sets are thinned evenly.
LARGEST = 2000


def evaluate(
    graphs: Any,
    reference: Any,
    train: Any = None,
    *,
    family: str | Callable[[Any], bool] | None = None,
    convention: str = "gdss",
    nodes: Sequence[str] | None = None,
    edges: Sequence[str] | None = None,
    requested: int | None = None,
    subsets: int = 100,
    bootstrap: int = 1000,
    permutations: int = 1000,
    seconds: float = SECONDS,
    seed: int = 0,
) -> Report:
    """Measure generated graphs against real ones.

    Parameters
    ----------
    graphs: what a model drew (`zoo.Drawn`, whose missing graphs count); networkx graphs, None
        standing for one that failed; PyTorch Geometric data; a `Graphs` batch; or molecules (RDKit,
        or graphs whose attributes are those of molecules), see `evaluate_molecules`
    reference: held-out real graphs of the same kind
    train: the training graphs, for novelty, copies and the floor
    family: name of a predicate of `validity.FAMILIES`, or a function graph -> bool
    convention: whose published kernels, "gdss" or "digress"; never mix the two
    nodes, edges: categorical attributes that make graphs different and that NSPDK compares
        (default: those that drawn graphs or a batch declare, else none)
    requested: graphs asked for, where more than are given; the missing ones count as failures
    subsets, bootstrap, permutations: repetitions; seconds: for one isomorphism test

    Raises `UserError` for empty sets, graphs that are not simple and undirected, graphs without
    nodes among the real ones, attributes that a node or an edge lacks, unknown names.
    """
    kernels = kernels_of(convention)
    graphs, requested = _of_model(graphs, requested)
    if _are_molecules(graphs):
        if family is not None:
            raise UserError("molecules have no family; their validity is a chemical one")
        return evaluate_molecules(
            graphs, reference, train, requested=requested, bootstrap=bootstrap, seed=seed
        )
    if isinstance(graphs, Graphs):
        nodes = graphs.attributes.nodes if nodes is None else nodes
        edges = graphs.attributes.edges if edges is None else edges
    nodes, edges = tuple(nodes or ()), tuple(edges or ())
    given, real, known = (_listed(x, nodes, edges) for x in (graphs, reference, train))
    total = len(given) if requested is None else requested
    if not total:
        raise UserError("nothing to evaluate: no graph was requested")
    if total < len(given):
        raise UserError(f"{requested} requested, but {len(given)} graphs are given")
    if not real:
        raise UserError("the reference set is empty")
    if train is not None and not known:
        raise UserError("the training set is empty; leave train out if there is none")
    for name, part in (("generated", given), ("reference", real), ("train", known)):
        _check(part, name, nodes, edges)
    given += [None] * (total - len(given))
    notes: list[str] = []
    statistics, data, failures, undecided = _rates(
        given, real, known if train is not None else None, family, nodes, edges, seconds
    )
    leak = leaks(known, real, nodes, edges, seconds) if known else None
    if leak is not None and leak.leaked:
        notes.append(f"leak: {leak}")
    if undecided:
        notes.append(f"{undecided} isomorphism tests ran out of time and count as copies")
    if any(graph is None or not len(graph) for graph in given):
        notes.append("failed and empty graphs count as single isolated nodes in every MMD")
    repeats: dict[str, Any] = {
        "subsets": subsets,
        "resamples": bootstrap,
        "permutations": permutations,
    }
    sets = [_thinned(part, notes, name) for part, name in ((given, "generated graphs"),
            (real, "reference graphs"), (known, "training graphs"))]  # fmt: skip
    if len(sets[0]) < len(sets[1]):
        notes.append(
            f"only {len(sets[0])} graphs against {len(sets[1])} of reference: the biased MMD is "
            "larger than that of a set of equal size"
        )
    rows = describe(adjacencies([graph for part in sets for graph in part]))
    ends = np.cumsum([len(part) for part in sets])
    ours: dict[str, Comparison] = {}
    floor: dict[str, Comparison] = {}
    for name, x in rows.items():
        parts = np.split(x, ends[:2])
        pair = (HONEST[name], kernels[name])
        ours[name] = compare(parts[0], parts[1], *pair, **repeats, seed=seed)
        if len(parts[2]):
            floor[name] = compare(parts[2], parts[1], *pair, **repeats, seed=seed)
    pairs = _nspdk(sets, nodes, edges) if nodes or edges else (None, None)
    return Report(
        figures=estimate(statistics, bootstrap, seed),
        data=data,
        requested=total,
        delivered=sum(graph is not None for graph in given),
        reference=len(real),
        train=len(known),
        mmd=ours,
        floor=floor,
        mean_mmd=_headline(ours, convention),
        mean_floor=_headline(floor, convention),
        ratio=_ratio(ours, floor, convention),
        failures=failures,
        family=family if isinstance(family, str) else getattr(family, "__name__", None),
        convention=convention,
        leak=leak,
        nspdk=pairs[0],
        nspdk_floor=pairs[1],
        notes=tuple(notes),
        seed=seed,
    )


def _of_model(graphs: Any, requested: int | None) -> tuple[Any, int | None]:
    """The batch of what a model drew and how many were asked for; anything else as it is."""
    batch = getattr(graphs, "graphs", None)
    if not isinstance(batch, Graphs):
        return graphs, requested
    return batch, graphs.requested if requested is None else requested


def _check(graphs: list[Any], name: str, nodes: Sequence[str], edges: Sequence[str]) -> None:
    """`UserError` that names the set and the graph where something cannot be compared."""
    try:
        adjacencies(graphs)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    for i, graph in enumerate(graphs):
        if graph is None or not len(graph):
            if name != "generated":
                raise UserError(f"{name}: graph {i} has no nodes")
            continue
        if not (nodes or edges):
            continue
        if not hasattr(graph, "number_of_nodes"):
            raise UserError(f"{name}: graph {i} is no networkx graph, so it has no attributes")
        for wanted, owners in ((nodes, graph.nodes(data=True)), (edges, graph.edges(data=True))):
            for *owner, data in owners:
                missing = [attribute for attribute in wanted if attribute not in data]
                if missing:
                    what = "-".join(map(repr, owner))
                    what = f"{'node' if len(owner) == 1 else 'edge'} {what} of graph {i}"
                    raise UserError(f"{name}: {what} lacks the attribute {missing[0]!r}")


def _listed(graphs: Any, nodes: Sequence[str] = (), edges: Sequence[str] = ()) -> list[Any]:
    """A list of networkx graphs, adjacency matrices or None; of PyG data, the fields named."""
    if graphs is None:
        return []
    if isinstance(graphs, Graphs):
        return list(to_networkx(graphs))
    if hasattr(graphs, "number_of_nodes"):
        raise UserError("expected a list of graphs, got one graph; put it in a list")
    if isinstance(graphs, (str, bytes)) or not isinstance(graphs, Iterable):
        raise UserError(f"cannot evaluate {graphs!r:.60}; give graphs")
    given = list(graphs)
    for i, graph in enumerate(given):
        if not hasattr(graph, "edge_index"):
            continue
        if len(nodes) > 1 or len(edges) > 1:
            raise UserError("of PyTorch Geometric graphs one field holds the kinds of nodes, and "
                            "one those of edges")
        node, edge = (names[0] if names else None for names in (nodes, edges))
        others = tuple(sorted({*graph.keys()} - {node, edge, "edge_index"}))
        given[i] = networkx_of_pyg(graph, i, node, edge, (), None, others)
    return given


def _thinned(graphs: list[Any], notes: list[str], name: str) -> list[Any]:
    if len(graphs) <= LARGEST:
        return graphs
    notes.append(f"MMDs use {LARGEST} of the {len(graphs)} {name}, evenly spaced")
    return [graphs[i] for i in np.linspace(0, len(graphs) - 1, LARGEST).astype(int)]


def _rates(
    given: list[Any],
    real: list[Any],
    known: list[Any] | None,
    family: str | Callable[[Any], bool] | None,
    nodes: tuple[str, ...],
    edges: tuple[str, ...],
    seconds: float,
) -> tuple[dict[str, Statistic], dict[str, float], dict[str, int], int]:
    """Rates of the requested, the same of the reference, failures, undecided comparisons."""
    sorted_ = classes([*given, *real, *(known or [])], nodes, edges, seconds)
    ours, theirs, seen = np.split(sorted_.labels, [len(given), len(given) + len(real)])
    training = set(seen.tolist()) - {-1}

    def columns(graphs: list[Any], labels: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        made = labels >= 0
        times = Counter(labels.tolist())
        # a graph drawn m times counts 1/m each time, so that the sum is the number of classes
        distinct = np.array([0.0 if k < 0 else 1 / times[k] for k in labels.tolist()])
        new = np.array([k >= 0 and k not in training for k in labels.tolist()], float)
        out = {"connectivity": holds("connected", graphs).astype(float)}
        valid = made.astype(float)
        if family is not None:
            valid = holds(family, graphs).astype(float)
            out["validity"] = valid
        out["uniqueness"] = distinct
        if known is not None:
            out["novelty"] = new
            if family is not None:
                out["vun"] = valid * new * distinct
            out["copied"] = made - new
        return out

    rates, of_data = columns(given, ours), columns(real, theirs)
    statistics = {name: mean(values) for name, values in rates.items()}
    data = {name: float(values.mean()) for name, values in of_data.items()}
    made = (ours >= 0).astype(float)
    sizes, real_sizes = _sizes(given), _sizes(real)
    for name, values in sizes.items():
        statistics[name] = ratio(values * made, made, of="delivered", unit=name)
        data[name] = float(real_sizes[name].mean())
    failures = {"missing": int((made == 0).sum())}
    tested = rates.get("validity", rates["connectivity"])
    wanted = "connected" if family is None else family
    reason = f"not {wanted}" if isinstance(wanted, str) else "not in the family"
    failures[reason] = int(((made > 0) & (tested == 0)).sum())
    return statistics, data, {k: v for k, v in failures.items() if v}, sorted_.undecided


def _sizes(graphs: list[Any]) -> dict[str, NDArray[np.float64]]:
    rows = []
    for a in adjacencies(graphs):
        x = a.astype(np.float64)
        rows.append((len(a), a.sum() / 2, ((x @ x) * x).sum() / 6 / len(a)))
    nodes, edges, triangles = np.array(rows, float).reshape(-1, 3).T
    return {"nodes": nodes, "edges": edges, "triangles": triangles}


def _headline(
    comparisons: dict[str, Comparison], convention: str
) -> Four | None:
    """Mean, deviation, least and most of the mean over descriptors, subset by subset."""
    if not comparisons:
        return None
    values = np.mean([comparisons[name].draws for name in HEADLINE[convention]], axis=0)
    return float(values.mean()), float(values.std()), float(values.min()), float(values.max())


def _ratio(
    ours: dict[str, Comparison], floor: dict[str, Comparison], convention: str
) -> float | None:
    if not floor:
        return None
    tops = [ours[name].published for name in HEADLINE[convention]]
    bottoms = [floor[name].published_all for name in HEADLINE[convention]]
    if min(bottoms) <= 0:
        return None
    return float(np.mean(np.array(tops) / np.array(bottoms)))


def _nspdk(
    sets: Sequence[list[Any]], nodes: tuple[str, ...], edges: tuple[str, ...]
) -> tuple[tuple[float, float], tuple[float, float] | None]:
    ours, real, known = (nspdk.features(part, nodes, edges) for part in sets)
    found = (nspdk.mmd(ours, real), nspdk.mmd_unbiased(ours, real))
    if not known.shape[0]:
        return found, None
    return found, (nspdk.mmd(known, real), nspdk.mmd_unbiased(known, real))


def _are_molecules(graphs: Any) -> bool:
    if isinstance(graphs, Graphs):
        kinds = graphs.attributes.nodes, graphs.attributes.edges
        return kinds == (("element", "charge"), ("order",))
    if not isinstance(graphs, Sequence) or isinstance(graphs, (str, bytes)):
        return False
    first = next((graph for graph in graphs if graph is not None), None)
    return first is not None and (isinstance(first, str) or hasattr(first, "GetNumAtoms"))


def evaluate_molecules(
    molecules: Any,
    reference: Any,
    train: Any = None,
    *,
    requested: int | None = None,
    fcd: bool | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Report:
    """Measure generated molecules, none of them corrected.

    molecules, reference, train: RDKit molecules (None for one that failed), SMILES, or a batch of
        molecular `Graphs`
    fcd: Fréchet ChemNet distance; None for yes where ``fcd_torch`` is installed

    Figures, of the requested: ``validity``, ``published`` (valence check alone), ``connectivity``
    (valid and one fragment), ``uniqueness`` (distinct valid), ``novelty`` (valid, not in the
    training set); and ``unique_of_valid``, ``novel_of_valid`` with the published denominators.
    """
    from driftworks.graphgen.molecules import check, nspdk_features
    from driftworks.graphgen.molecules import fcd as distance

    given = _mols(molecules)
    total = len(given) if requested is None else requested
    if not total:
        raise UserError("nothing to evaluate: no molecule was requested")
    if total < len(given):
        raise UserError(f"{requested} requested, but {len(given)} molecules are given")
    given += [None] * (total - len(given))
    real = [verdict.smiles for verdict in map(check, _mols(reference)) if verdict.smiles]
    known = None if train is None else [
        verdict.smiles for verdict in map(check, _mols(train)) if verdict.smiles
    ]  # fmt: skip
    if not real:
        raise UserError("the reference set has no valid molecule")
    if known is not None and not known:
        raise UserError("the training set has no valid molecule; leave train out if there is none")
    verdicts = [check(mol) for mol in given]
    smiles = [verdict.smiles for verdict in verdicts]
    times = Counter(text for text in smiles if text)
    valid = np.array([text is not None for text in smiles], float)
    distinct = np.array([1 / times[text] if text else 0.0 for text in smiles])
    statistics = {
        "validity": mean(valid),
        "published": mean(np.array([verdict.published for verdict in verdicts], float)),
        "connectivity": mean(np.array([verdict.connected for verdict in verdicts], float)),
        "uniqueness": mean(distinct),
        "unique_of_valid": ratio(distinct, valid, of="valid"),
    }
    data = {"validity": 1.0, "published": 1.0, "uniqueness": len(set(real)) / len(real)}
    data["connectivity"] = float(np.mean(["." not in text for text in real]))
    data["unique_of_valid"] = data["uniqueness"]
    if known is not None:
        training = frozenset(known)
        new = np.array([bool(text) and text not in training for text in smiles], float)
        statistics["novelty"] = mean(new)
        statistics["novel_of_valid"] = ratio(new, valid, of="valid")
        data["novelty"] = float(np.mean([text not in training for text in real]))
        data["novel_of_valid"] = data["novelty"]
    notes = ["NSPDK and FCD are those of the valid molecules alone"]
    made = [text for text in smiles if text]
    found = floor = value = None
    if made:
        target = nspdk_features(real)
        ours = nspdk_features(made)
        found = (nspdk.mmd(ours, target), nspdk.mmd_unbiased(ours, target))
        if known:
            part = nspdk_features(_thinned(known, [], ""))
            floor = (nspdk.mmd(part, target), nspdk.mmd_unbiased(part, target))
    if fcd is None:
        from importlib.util import find_spec

        fcd = find_spec("fcd_torch") is not None
        if not fcd:
            notes.append("no FCD: fcd_torch is not installed")
    if fcd and min(len(made), len(real)) > 1:
        value, note = distance(made, real)
        notes.append(note)
    return Report(
        figures=estimate(statistics, bootstrap, seed),
        data=data,
        requested=total,
        delivered=sum(mol is not None for mol in given),
        reference=len(real),
        train=len(known or ()),
        failures=dict(Counter(v.reason for v in verdicts if v.reason)),
        family="molecules",
        nspdk=found,
        nspdk_floor=floor,
        fcd=value,
        notes=tuple(notes),
        seed=seed,
    )


def _mols(molecules: Any) -> list[Any]:
    """RDKit molecules, not sanitised where read from SMILES; None where that is no SMILES."""
    from rdkit import Chem, rdBase

    if isinstance(molecules, Graphs):
        molecules = to_networkx(molecules)
    if isinstance(molecules, (str, bytes)) or not isinstance(molecules, Iterable):
        raise UserError(f"cannot evaluate {molecules!r:.60}; give molecules or SMILES")

    def one(given: Any) -> Any:
        if isinstance(given, str):
            return Chem.MolFromSmiles(given, sanitize=False)
        return molecule_of(given) if hasattr(given, "number_of_nodes") else given

    with rdBase.BlockLogs():
        return [one(given) for given in molecules]
