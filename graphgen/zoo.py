r"""Graph models by name: load, fit, sample, complete, score.

    model = graphgen.load("community_small")
    graphs = model.sample(100, seed=7)               # networkx graphs
    full = model.complete(partial, n=20)             # the known part comes back as it was

Graph i is a function of (weights, seed, i, settings): its size and noise come from its own key, and
graphs are computed beside others of exactly their size, without padding. Conditions on a graph as a
whole ("connected") are met by drawing again under the same number, attempt by attempt, so they too
leave other graphs alone; how often that was needed is part of the answer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from driftworks.core import shelf
from driftworks.core.keys import Keys
from driftworks.core.run import pick_device
from driftworks.core.solvers import Solver
from driftworks.core.solvers import solver as solver_called
from driftworks.core.workers import each_on_one_thread
from driftworks.data.progress import progress_bar
from driftworks.errors import UserError
from driftworks.graphgen import gdss
from driftworks.graphgen.convert import (
    MEMORY_LIMIT,
    from_networkx,
    from_pyg,
    from_rdkit,
    to_networkx,
)
from driftworks.graphgen.elbo import Bound, bound
from driftworks.graphgen.graph import Attributes, Graphs
from driftworks.graphgen.network import NetConfig, build, footprint
from driftworks.graphgen.process import GraphModel, graph_process, standardised
from driftworks.graphgen.sample import SOLVER, STEPS, generate
from driftworks.graphgen.validity import predicate

if TYPE_CHECKING:
    from networkx import Graph

__all__ = ["Drawn", "Model", "available", "load"]

Requirement = str | Callable[[Any], bool]
Nodes = int | tuple[int, int] | Sequence[int] | None
FAR = 1e3  # standard deviations; a known value farther out is shown to the network as that
#: Matrices of fewer than four rows take other routines in BLAS, whose last bits differ.
LEAST = 4
_STRIDE = 1 << 40  # attempts at graph i are the numbers i, i + 2^40, i + 2 * 2^40, ...


@dataclass(frozen=True)
class Drawn(Sequence["Graph"]):
    """Graphs that were asked for, as networkx graphs, and what it took to get them.

    ``graphs`` holds them as tensors; ``requested`` how many were asked for; ``failures`` why some
    are missing; ``attempts`` how many were drawn in all; ``indices`` (len,) their numbers.
    """

    graphs: Graphs
    requested: int
    attempts: int
    failures: dict[str, int]
    indices: np.ndarray
    _networkx: list[Any] = field(default_factory=list, repr=False)

    @property
    def acceptance(self) -> float:
        """The share of the graphs drawn that met the requirements."""
        return len(self) / self.attempts if self.attempts else float("nan")

    def __len__(self) -> int:
        return len(self.graphs)

    def __getitem__(self, index: Any) -> Any:
        if not self._networkx and len(self.graphs):
            self._networkx.extend(to_networkx(self.graphs))
        return self._networkx[index]

    def __str__(self) -> str:
        lost = ", ".join(f"{count} {reason}" for reason, count in self.failures.items() if count)
        return (
            f"{len(self)} of {self.requested} graphs, {self.acceptance:.1%} of {self.attempts} "
            f"draws accepted" + (f"; {lost}" if lost else "")
        )


def available() -> dict[str, Path]:
    """Names and folders of the shipped graph models."""
    return shelf.available("graphgen")


def load(name: str | os.PathLike[str], device: str = "auto") -> Model:
    """A model by name or by the folder of its checkpoint; `UserError` for neither, or damage."""
    title, tensors, meta = shelf.fetch(name, "graphgen")
    return Model(title, tensors, meta, pick_device(device))


class Model:
    """A trained graph process, ready to be asked.

    Attributes: ``name``, ``hash`` (SHA-256 of the weights), ``meta`` (configuration, training
    record), ``config``, ``attributes`` of its graphs, ``sizes`` and ``share`` of the node counts,
    ``steps`` it takes when none are asked for.
    """

    def __init__(
        self, name: str, tensors: dict[str, Tensor], meta: dict[str, Any], device: torch.device
    ):
        self.name, self.meta, self.device = name, meta, device
        self.hash: str = meta["sha256"]
        try:
            settings = meta["config"]
            self.model: GraphModel | gdss.GdssModel
            if settings["net"].get("system") == "gdss":
                self.model = gdss.model_of(settings)
            else:
                config = NetConfig.model_validate(settings["net"])
                self.model = GraphModel(build(config), graph_process(config))
            self.model.net.load_state_dict({k: v.float() for k, v in tensors.items()})
            self.sizes = np.asarray(meta["sizes"], dtype=np.int64)
            self.share = np.asarray(meta["share"], dtype=np.float64)
            self.attributes = Attributes.from_dict(meta["attributes"])
        except KeyError as error:
            raise UserError(f"checkpoint {name!r}: its model.json lacks {error}") from None
        except (TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"checkpoint {name!r} does not fit this version: {reason}") from None
        broken = [k for k, v in tensors.items() if not torch.isfinite(v).all()]
        if broken:
            raise UserError(f"checkpoint {name!r} holds weights that are not finite: {broken[0]}")
        self.model.to(device).eval().requires_grad_(False)
        self.net, self.process, self.config = self.model.net, self.model.process, self.model.config
        published = self.model.sampler if isinstance(self.model, gdss.GdssModel) else None
        self.steps = published.steps if published else STEPS

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.net.parameters())
        return (
            f"Model({self.name!r}, {count / 1e6:.2f} M parameters, {self.config.system}, "
            f"{self.sizes.min()}-{self.sizes.max()} nodes)"
        )

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        first: int = 0,
        steps: int | None = None,
        solver: str | Solver | None = None,
        nodes: Nodes = None,
        label: int | Sequence[int] | None = None,
        properties: Mapping[str, float | Sequence[float]] | None = None,
        guidance: float = 1.0,
        noise: float = 0.0,
        temperature: float = 1.0,
        require: Requirement | Sequence[Requirement] = (),
        attempts: int = 20,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Drawn:
        """Draw graphs ``first`` .. ``first + n - 1`` of ``seed``.

        Args:
            n: graphs requested.
            steps: of the clock, by default 50, and 1000 for the preset "gdss"; each is one network
                evaluation a graph (doubled by ``guidance`` other than 1; more with solvers that ask
                more than once a step, such as "predictor_corrector").
            solver: how a system of SDEs is solved: a name of `core.solvers.SOLVERS`, or a solver
                with options, ``core.solvers.solver("s4", ratio=0.1)``. A discrete flow takes none.
            nodes: node count, a range (low, high), or n counts; as in the data when not given.
            label, properties: what to condition on, one value or n.
            guidance: classifier-free guidance weight: 1 is the conditional model itself, 0 the
                unconditional one.
            noise: eta of the discrete flow: entries are drawn again, so that mistakes are repaired.
            temperature: of the discrete flow's posterior.
            require: what every graph must be: "connected", "tree", "planar", ... (the predicates of
                `graphgen.validity`), "max_degree=4", or a function of a networkx graph.
            attempts: how often a graph that fails ``require`` is drawn again.
            batch_size: graphs computed together; changes speed and memory, not graphs.

        Returns a `Drawn` sequence of networkx graphs in the order of their numbers. Graphs that did
        not stay finite or failed all attempts are counted in its ``failures``. Raises `UserError`
        on impossible requests.
        """
        steps = self.steps if steps is None else steps
        self._whole(n=n, steps=steps, batch_size=batch_size, attempts=attempts)
        self._whole(0, seed=seed, first=first)
        self._numbers(guidance=guidance, noise=noise, temperature=temperature)
        self._fits_system(solver, noise, temperature)
        if first + n >= _STRIDE:
            raise UserError(f"first must lie in 0..2**40 - n, got {first}")
        keys = Keys.for_samples(seed, range(first, first + n))
        sizes = self._counts(keys, nodes)
        cond = self._condition(n, label, properties)
        tests = _requirements(require)
        settings = {
            "steps": steps, "guidance": float(guidance), "noise": noise,
            "temperature": temperature, "solver": solver,
        }
        return self._draw(n, keys, sizes, cond, None, tests, attempts, batch_size, progress,
                          settings, first)

    def complete(
        self,
        partial_graph: Any,
        n: int | None = None,
        *,
        count: int = 1,
        seed: int = 0,
        steps: int | None = None,
        guidance: float = 1.0,
        label: int | None = None,
        properties: Mapping[str, float] | None = None,
        noise: float = 0.0,
        require: Requirement | Sequence[Requirement] = (),
        attempts: int = 20,
        batch_size: int = 64,
    ) -> Drawn:
        """Graphs of ``n`` nodes that contain a known one: its nodes, attributes, edges, non-edges.

        The known nodes come back first, under their own names and with all their attributes,
        bit-identical; new nodes are numbered on. ``count`` completions are drawn. The known graph
        may also be PyTorch Geometric data or a molecule. Raises `UserError` for attributes the
        model does not know, and for an ``n`` that is smaller than the known graph.
        """
        steps = self.steps if steps is None else steps
        self._whole(count=count, steps=steps, batch_size=batch_size, attempts=attempts)
        self._whole(0, seed=seed)
        self._numbers(guidance=guidance, noise=noise)
        self._fits_system(None, noise, 1.0)
        part = self._given([partial_graph])
        have = part.max_nodes
        if n is not None:
            self._whole(n=n)
        else:
            n = max(have, int(self.sizes[np.searchsorted(self.share.cumsum(), 0.5)]))
        if n < have:
            raise UserError(f"n={n} is less than the {have} nodes that are known")
        cond = self._condition(count, label, properties)
        self._room(n, cond is not None and guidance != 1.0)  # before anything of that size is made
        whole = part.padded(n)
        held = torch.arange(n) < have
        known: dict[str, tuple[Tensor, Tensor]] = {
            "nodes": (whole.nodes, held[None]),
            "edges": (whole.edges, held[None, :, None] & held[None, None, :]),
        }
        if isinstance(self.config, NetConfig):  # the published GDSS has no continuous attributes
            place = {"features": known["nodes"][1], "weights": known["edges"][1]}
            for name, values in standardised(whole, self.config).items():
                known[name] = (values.clamp(-FAR, FAR), place[name])
        keys = Keys.for_samples(seed, range(count))
        tests = _requirements(require)
        settings = {
            "steps": steps, "guidance": float(guidance), "noise": noise, "temperature": 1.0,
        }
        out = self._draw(
            count, keys, np.full(count, n), cond, known, tests, attempts, batch_size, False,
            settings, 0,
        )
        # Scaling there and back may round: what was given is put in as it was given.
        graphs = out.graphs
        for name in ("features", "weights"):
            x = getattr(graphs, name)
            if x is None or name not in known:
                continue
            where = known[name][1]
            where = where.unsqueeze(-1) if x.dim() > where.dim() else where
            exact = torch.where(where, getattr(whole, name), x)
            graphs = (
                replace(graphs, features=exact) if name == "features"
                else replace(graphs, weights=exact)
            )
        networkx = hasattr(partial_graph, "number_of_nodes")
        given: list[Hashable] = list(partial_graph) if networkx else list(range(have))
        taken = set(given)
        new = (k for k in range(2 * n + have) if k not in taken)
        names = (*given, *(next(new) for _ in range(n - have)))
        graphs = replace(graphs, names=(names,) * len(graphs))
        full = to_networkx(graphs) if networkx else []
        for graph in full:  # attributes that the model ignores, and numbers in the type they had
            graph.graph.update(partial_graph.graph)
            for node, data in partial_graph.nodes(data=True):
                graph.nodes[node].update(data)
            for u, v, data in partial_graph.edges(data=True):
                graph.edges[u, v].update(data)
        return replace(out, graphs=graphs, _networkx=full)

    def elbo(self, graphs: Any, *, steps: int = 100, draws: int = 1,
             seed: int = 0) -> Bound:
        """A lower bound of the log-likelihood of graphs, in nats; see `graphgen.elbo`.

        ``graphs`` as for `fit`, in the attributes of this model; else `UserError`.
        """
        if not isinstance(self.model, GraphModel):
            raise UserError("the published GDSS answers with scores, which give no such bound")
        given = self._given(graphs)
        return bound(self.model, given, steps=steps, draws=draws, seed=seed)

    def _given(self, graphs: Any) -> Graphs:
        """Graphs of any kind in this model's own vocabulary; `UserError` for what is not in it."""
        if isinstance(graphs, Drawn):
            graphs = graphs.graphs
        if isinstance(graphs, Graphs):
            if graphs.attributes == self.attributes:
                return graphs
            graphs = to_networkx(graphs)
        one_graph = hasattr(graphs, "number_of_nodes")
        if one_graph or isinstance(graphs, str | bytes) or not isinstance(graphs, Iterable):
            return from_networkx(graphs, self.attributes)  # which says what is wrong
        listed: list[Any] = list(graphs)
        if any(hasattr(one, "GetAtoms") for one in listed):
            return from_rdkit(listed, self.attributes)
        if any(hasattr(one, "edge_index") for one in listed):
            return from_pyg(listed, attributes=self.attributes)
        return from_networkx(listed, self.attributes)

    @staticmethod
    def _whole(least: int = 1, /, **values: Any) -> None:
        for name, value in values.items():
            if not isinstance(value, int | np.integer) or value < least:
                raise UserError(f"{name} must be a whole number of at least {least}, got {value!r}")

    @staticmethod
    def _numbers(**values: Any) -> None:
        for name, value in values.items():
            if not (isinstance(value, int | float | np.number) and 0 <= value < np.inf):
                raise UserError(f"{name} must be a number >= 0, got {value!r}")

    def _fits_system(self, solver: str | Solver | None, noise: float, temperature: float) -> None:
        """`UserError` for settings of the other system, and for a solver that is not there."""
        if self.config.system == "flow":
            if solver is not None:
                raise UserError(
                    f"{self.name} is a discrete flow, which has no solver (got {solver!r}): "
                    "solvers are for models trained with system='sde' or preset='gdss'"
                )
        elif noise != 0.0 or temperature != 1.0:
            raise UserError(
                f"noise={noise} and temperature={temperature} are settings of discrete flows; "
                f"{self.name} is a system of SDEs"
            )
        if isinstance(solver, str):
            solver_called(solver)

    def _counts(self, keys: Keys, nodes: Nodes) -> np.ndarray:
        n = len(keys)
        if nodes is None or isinstance(nodes, tuple):
            if nodes is not None and len(nodes) != 2:
                raise UserError(f"nodes={nodes}: a range is two numbers; give counts as a list")
            low, high = nodes if nodes is not None else (self.sizes.min(), self.sizes.max())
            inside = (self.sizes >= low) & (self.sizes <= high)
            if not inside.any():
                raise UserError(f"nodes={nodes}: the data have {self.sizes.min()}-"
                                f"{self.sizes.max()} nodes")
            share = np.cumsum(self.share * inside)
            u = keys.uniform("size", 0, (), torch.float64).numpy() * share[-1]
            return self.sizes[np.searchsorted(share, u, side="right").clip(max=len(share) - 1)]
        counts = np.full(n, nodes) if isinstance(nodes, int | np.integer) else np.asarray(nodes)
        if counts.shape != (n,) or counts.dtype.kind not in "iu" or counts.min() < 1:
            raise UserError(f"nodes must be a count, a range or {n} counts of at least 1")
        return counts.astype(np.int64)

    def _condition(
        self, n: int, label: Any, properties: Mapping[str, Any] | None
    ) -> dict[str, Tensor] | None:
        cond: dict[str, Tensor] = {}
        if label is not None:
            if self.config.labels == 0:
                raise UserError(f"{self.name} was trained without labels")
            given = np.asarray(label)
            if given.dtype.kind not in "iu" or given.shape not in ((), (n,)):
                raise UserError(f"label must be a whole number or {n} of them, got {label!r:.60}")
            labels = torch.from_numpy(np.broadcast_to(given, n).astype(np.int64))
            if int(labels.min()) < 0 or int(labels.max()) >= self.config.labels:
                raise UserError(f"label must lie in 0..{self.config.labels - 1}, got {label}")
            cond["label"] = labels
        if properties:
            names = self.config.properties
            unknown = sorted(properties.keys() - set(names))
            if unknown:
                known = ", ".join(names) or "none"
                raise UserError(f"unknown properties {', '.join(unknown)}; it knows {known}")
            values = torch.full((n, len(names)), torch.nan)
            for name, value in properties.items():
                try:
                    row = np.asarray(value, np.float32)
                except (TypeError, ValueError):
                    row = np.full((), np.inf, np.float32)
                if row.shape not in ((), (n,)) or np.isinf(row).any():
                    raise UserError(
                        f"property {name} must be a finite number or {n} of them (NaN asks for "
                        f"nothing), got {value!r:.60}"
                    )
                values[:, names.index(name)] = torch.from_numpy(np.broadcast_to(row, n).copy())
            cond["properties"] = values
        return cond or None

    def _batch(
        self, keys: Keys, rows: np.ndarray, size: int, cond: dict[str, Tensor] | None,
        known: dict[str, tuple[Tensor, Tensor]] | None, steps: int, guidance: float, noise: float,
        temperature: float, solver: str | Solver | None = None,
    ) -> tuple[Graphs, np.ndarray]:
        """The finite graphs of one size, computed together, and which of the rows they are."""
        chosen = torch.from_numpy(rows)
        padded = chosen if len(chosen) >= LEAST else chosen.repeat(LEAST)[:LEAST]
        mask = torch.ones(len(padded), size, dtype=torch.bool, device=self.device)
        asked = None if cond is None else {k: v[padded].to(self.device) for k, v in cond.items()}
        given = None
        if known is not None:

            def spread(x: Tensor) -> Tensor:
                return x.expand(len(padded), *x.shape[1:]).to(self.device)

            given = {name: (spread(value), spread(where)) for name, (value, where) in known.items()}
        some = keys[padded].to(self.device)
        if isinstance(self.model, gdss.GdssModel):
            state, finite = gdss.generate(self.model, some, mask, steps, solver, given)
        else:
            state, finite = generate(
                self.model, some, mask, steps, asked, guidance, noise, temperature,
                solver or SOLVER, given,
            )
        finite[len(chosen) :] = False
        graphs = self._graphs({k: v[finite].cpu() for k, v in state.items()}, size)
        return graphs, rows[finite[: len(chosen)].cpu().numpy()]

    def _graphs(self, state: dict[str, Tensor], size: int) -> Graphs:
        count = len(state["nodes"])
        features = torch.zeros(count, size, self.attributes.width, dtype=torch.float64)
        if self.config.features:
            mean, deviation = torch.tensor(self.config.features, dtype=torch.float64).unbind(1)
            features = state["features"].double() * deviation + mean
        weights = None
        if self.config.weights:
            ((centre, scale),) = self.config.weights
            weights = (state["weights"].double() * scale + centre) * (state["edges"] > 0)
        mask = torch.ones(count, size, dtype=torch.bool)
        return Graphs(
            state["edges"], state["nodes"], features, weights, mask, self.attributes
        )

    def _room(self, size: int, guided: bool) -> int:
        """How many graphs of a size fit into memory together; `UserError` where `LEAST` do not."""
        if not isinstance(self.config, NetConfig):
            return 1 << 20
        each = footprint(self.config) * (2 if guided else 1)
        if LEAST * each * size * size > MEMORY_LIMIT:
            raise UserError(
                f"a graph of {size} nodes takes {LEAST * each * size**2 / 2**30:.1f} GiB to draw, "
                f"the limit is {MEMORY_LIMIT / 2**30:.1f} GiB: graphs of up to "
                f"{int((MEMORY_LIMIT / (LEAST * each)) ** 0.5)} nodes fit"
            )
        return int(MEMORY_LIMIT // (each * size * size))

    def _draw(
        self, n: int, keys: Keys, sizes: np.ndarray, cond: dict[str, Tensor] | None,
        known: dict[str, tuple[Tensor, Tensor]] | None, tests: list[Callable[[Any], bool]],
        attempts: int, batch_size: int, progress: bool,
        settings: dict[str, Any], first: int,
    ) -> Drawn:
        guided = cond is not None and settings["guidance"] != 1.0
        most = {
            int(size): min(batch_size, self._room(int(size), guided)) for size in np.unique(sizes)
        }
        waiting = np.arange(n)
        kept: list[tuple[Graphs, np.ndarray]] = []
        drawn = 0
        broken = np.zeros(n, dtype=bool)  # the last attempt did not stay finite
        with progress_bar("graphs", n, show=progress) as update:
            for attempt in range(attempts if tests else 1):
                again = Keys.for_samples(keys.seed, keys.ids + attempt * _STRIDE)
                batches = [
                    rows[start : start + most[int(size)]]
                    for size in np.unique(sizes[waiting])[::-1]
                    for rows in [waiting[sizes[waiting] == size]]
                    for start in range(0, len(rows), most[int(size)])
                ]

                def one(rows: np.ndarray, again: Keys = again) -> tuple[Graphs, np.ndarray]:
                    size = int(sizes[rows[0]])
                    return self._batch(again, rows, size, cond, known, **settings)

                done: list[np.ndarray] = []
                for rows, (graphs, finite) in zip(
                    batches, each_on_one_thread(one, batches, self.device), strict=True
                ):
                    drawn += len(rows)
                    broken[rows] = True
                    broken[finite] = False
                    good = np.ones(len(finite), dtype=bool)
                    if tests and len(finite):
                        good = np.array([all(t(g) for t in tests) for g in to_networkx(graphs)])
                    kept.append((graphs[np.flatnonzero(good)], finite[good]))
                    done.append(finite[good])
                    update(sum(len(rows) for _, rows in kept), n)
                waiting = np.setdiff1d(waiting, np.concatenate(done)) if done else waiting
                if not len(waiting):
                    break
        order = np.concatenate([rows for _, rows in kept]) if kept else np.empty(0, np.int64)
        rank = np.argsort(order, kind="stable")
        graphs = Graphs.cat([g for g, _ in kept])[rank] if len(order) else (
            Graphs.empty(attributes=self.attributes)
        )
        failures = {"not_finite": int(broken.sum())}
        if tests:
            failures["requirements"] = n - len(order) - failures["not_finite"]
        return Drawn(graphs, n, drawn, failures, order[rank] + first)


def _requirements(what: Requirement | Sequence[Requirement]) -> list[Callable[[Any], bool]]:
    if isinstance(what, str) or callable(what):
        return [_requirement(what)]
    return [_requirement(one) for one in what]


def _requirement(what: Requirement) -> Callable[[Any], bool]:
    """A test of a networkx graph; `UserError` names the choices."""
    if isinstance(what, str) and what.startswith("max_degree="):
        try:
            most = int(what.partition("=")[2])
        except ValueError:
            raise UserError(f"{what!r}: max_degree needs a whole number") from None
        return lambda graph: max((d for _, d in graph.degree), default=0) <= most
    return predicate(what)
