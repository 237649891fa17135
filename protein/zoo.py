r"""Models by name: load a checkpoint, ask it for protein chains.

    student = protein.load("ca80-sid")
    designs = student.sample([64, 72, 80] * 10, steps=8, gamma=0.45, seed=3)

Sample i is a function of (weights, seed, i, its length, settings): its noise comes from its own
key, and on a CPU chains are computed in single precision beside others of exactly their length. So
a set of designs does not change with batch size, order or the other lengths asked for, and can be
drawn in pieces with ``first``. On a GPU the last bits may differ with the batch.

A teacher follows its flow (`sample`), a student jumps between a few declared times
(`core.student`), a flow map between times of any grid (`core.flowmap`); all answer the same calls:

    Model.sample      chains of given lengths
    Model.scaffold    chains around a motif of a structure file (`motif`, `scaffold`)
    Model.vary        chains near given ones: noise up to a time t, and back (`scaffold`)
    Model.anneal      particles of the teacher's law to a power, weighed (`sample.annealed`)

A particle depends on the others of its set, and `anneal` is the one call of which the first
paragraph is not true.

Confidence. A finished chain is given noise again, to t = 0.8, and cleaned up by the model, a few
times; the root mean square distance in angstrom by which a residue misses its place says how far
the model would have put it elsewhere.
"""

from __future__ import annotations

import os
import time as clock
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from driftworks.core import grids, shelf
from driftworks.core.distill import denoise
from driftworks.core.flowmap import FlowMap
from driftworks.core.keys import Keys
from driftworks.core.process import Masks, State
from driftworks.core.run import pick_device
from driftworks.core.sample import Samples, sample
from driftworks.core.student import Student, renoise
from driftworks.core.workers import each_on_one_thread
from driftworks.data.backbones import Backbones
from driftworks.data.progress import progress_bar
from driftworks.errors import UserError
from driftworks.protein.chains import Chains
from driftworks.protein.designs import Designs
from driftworks.protein.motif import Motif
from driftworks.protein.network import ChainNet, JumpNet, NetConfig, build, build_jumping
from driftworks.protein.process import LABELS, NULL, SCALE, chain_process, from_chains
from driftworks.protein.sample import GAMMA, STEPS, annealed, generate, guided
from driftworks.protein.scaffold import Scaffolded, asked_twice, hold, noised, onward
from driftworks.protein.tm import superpose

__all__ = ["Model", "available", "load"]

ROLES = ("teacher", "student", "flowmap")
#: Chains of fewer rows than this take other routines in BLAS, whose last bits differ.
LEAST = 4
RENOISED, DRAWS = 0.8, 4


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is asked for: one row a chain, residues padded to the longest.

    ``cond`` holds what the network is told beside the label, in its units; ``start`` (N, L, 3) are
    chains in nm that are changed from the time ``begin`` on.
    """

    counts: np.ndarray
    cond: Mapping[str, Tensor] = field(default_factory=dict)
    start: Tensor | None = None
    begin: float = 0.0


Draw = Callable[[Keys, Tensor, dict[str, Tensor], Tensor | None], Samples]


class _Pieces:
    """A network that answers for many chains by asking for a few at a time."""

    def __init__(self, net: ChainNet, size: int, device: torch.device) -> None:
        self.net, self.size, self.device = net, max(size, LEAST), device

    def __call__(
        self, x: State, t: Tensor, mask: Masks = None, cond: Any = None,
        previous: State | None = None,
    ) -> Tensor:
        assert isinstance(x, Tensor) and isinstance(mask, Tensor)
        # all of one size: the last piece reaches back into the one before it
        starts = [min(k, max(len(x) - self.size, 0)) for k in range(0, len(x), self.size)]
        out = torch.empty_like(x)

        def one(start: int) -> Tensor:
            rows = slice(start, start + self.size)
            with torch.no_grad():
                told = {k: v[rows] for k, v in cond.items()}
                return self.net(x[rows], t[rows], mask[rows], told)

        for start, answer in zip(
            starts, each_on_one_thread(one, starts, self.device), strict=True
        ):
            out[start : start + self.size] = answer
        return out


def available() -> dict[str, Path]:
    """Names and folders of the shipped protein models."""
    return shelf.available("protein")


def load(name: str | os.PathLike[str] = "ca80-sid", device: str = "auto") -> Model:
    """A model by name or by the folder of its checkpoint.

    Raises `UserError` for an unknown name and for a damaged checkpoint.
    """
    title, tensors, meta = shelf.fetch(name, "protein")
    return Model(title, tensors, meta, pick_device(device))


class Model:
    """A trained teacher or student, ready to be asked.

    Attributes: ``name``, ``hash`` (SHA-256 of the weights), ``meta`` (configuration, training
    record), ``role`` ("teacher", "student" or "flowmap"), ``lengths`` (least and most residues it
    was trained on), ``net``, and for students ``times``, those they were trained at.
    """

    def __init__(
        self, name: str, tensors: dict[str, Tensor], meta: dict[str, Any], device: torch.device
    ):
        self.name, self.meta, self.device = name, meta, device
        self.hash: str = meta["sha256"]
        try:
            self.config = NetConfig.model_validate(meta["net"])
            self.role: str = meta["role"]
            self.lengths: tuple[int, int] = tuple(meta["lengths"])
            jumping = self.role == "flowmap"
            self.net: ChainNet = (build_jumping if jumping else build)(self.config)
            self.net.load_state_dict({k: v.float() for k, v in tensors.items()})
            self.times = tuple(float(t) for t in meta.get("times", ()))
        except KeyError as error:
            raise UserError(f"checkpoint {name!r}: its model.json lacks {error}") from None
        except (TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"checkpoint {name!r} does not fit this version: {reason}") from None
        if self.role not in ROLES:
            raise UserError(f"checkpoint {name!r} has the unknown role {self.role!r}")
        broken = [k for k, v in tensors.items() if not torch.isfinite(v).all()]
        if broken:
            raise UserError(f"checkpoint {name!r} holds weights that are not finite: {broken[0]}")
        self.net.to(device).eval().requires_grad_(False)
        self.process = chain_process()

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.net.parameters())
        return (
            f"Model({self.name!r}, {self.role}, {count / 1e6:.2f} M parameters, "
            f"{self.lengths[0]}-{self.lengths[1]} residues)"
        )

    def sample(
        self,
        lengths: int | Sequence[int] | ArrayLike,
        *,
        n: int | None = None,
        steps: int | Sequence[float] | None = None,
        gamma: float | None = None,
        label: int | str | Sequence[int | str] | None = None,
        guidance: float = 1.0,
        weak: Model | None = None,
        mix: float | None = None,
        solver: str = "sde",
        self_condition: bool = True,
        confidence: bool = True,
        seed: int = 0,
        first: int = 0,
        batch_size: int = 32,
        progress: bool = False,
    ) -> Designs:
        """Draw one chain for every length.

        Args:
            lengths: residues of each chain; a single number with ``n`` chains of it.
            steps: network calls a chain, 400 for a teacher; for a student the number of its times
                or others. A student also takes the times themselves.
            gamma: noise scale, 1 for the law that was learned, less for cooler samples: of the SDE
                (0.45 by default), of all noise a student draws (0.45), and of a flow map the share
                of noise drawn afresh at each stop, in [0, 1] (0 by default).
            label: secondary-structure class, a name or number of `process.LABELS`, one for all or
                one a chain; None asks for none.
            guidance: w of `sample.guided`; 1 is the model itself. Doubles the calls.
            weak: a less trained teacher, for autoguidance; ``mix`` its share (1 by default).
            solver: "sde" or "ode", teachers only.
            self_condition: show a teacher its previous answer.
            confidence: estimate each residue's error (`DRAWS` more calls a chain).
            seed, first: samples first .. first + n - 1 of the seed.
            batch_size: chains computed together; changes speed and memory only.

        Samples that stop being finite are NaN, see `Designs.finite`. Warns of lengths outside those
        trained on. Raises `UserError` on impossible requests.
        """
        return self._designs(
            _Plan(self._lengths(lengths, n)), steps=steps, gamma=gamma, label=label,
            guidance=guidance, weak=weak, mix=mix, solver=solver, self_condition=self_condition,
            confidence=confidence, seed=seed, first=first, batch_size=batch_size,
            progress=progress,
        )

    def scaffold(
        self, motif: Motif, n: int = 1, *, seed: int = 0, first: int = 0, **settings: Any
    ) -> Designs:
        """Draw n chains that hold a motif: its C-alphas lie where the file has them.

        Lengths and the motif's place in the sequence are drawn from its contigs for each design.
        ``settings`` are those of `sample`. `Designs.held` says which residues are the motif's, and
        the provenance has each design's contigs under its id. Models must have been shown motifs in
        training for good chains (`train.TrainConfig.motifs`). Raises and warns as `sample` does.
        """
        keys = self._keys(seed, first, n)
        layouts = motif.layouts(keys)
        counts = self._lengths([one.length for one in layouts], None)
        held = torch.zeros(len(counts), int(counts.max()), dtype=torch.bool)
        places = torch.zeros(*held.shape, 3)
        for row, layout in enumerate(layouts):
            held[row, layout.positions] = True
            places[row, layout.positions] = torch.from_numpy(motif.ca / SCALE)
        plan = _Plan(counts, {"known": held, "motif": places})
        out = self._designs(plan, seed=seed, first=first, **settings)
        for row, layout in enumerate(layouts):
            chain = hold(out.ca[row, : layout.length].numpy(), layout.positions, motif.ca)
            out.ca[row, : layout.length] = torch.from_numpy(chain).float()
        made = {
            "source": motif.source, "contigs": motif.contigs, "residues": " ".join(motif.names),
            "sequence": motif.sequence,
            "designs": dict(zip(out.ids, (one.contigs for one in layouts), strict=True)),
        }
        return replace(out, held=held, provenance=out.provenance | {"motif": made})

    def vary(
        self, chains: Chains | Backbones, t: float = 0.7, n: int = 1, *, seed: int = 0,
        first: int = 0, **settings: Any,
    ) -> Designs:
        """n variations of every chain: given noise up to time t, and finished from there.

        t: in (0, 1); near 1 little changes, near 0 nothing is kept. A student goes back to that of
            its times which is nearest to t, and the provenance says to which.
        n: variations of each chain; those of one chain follow one another

        ``settings`` are those of `sample`, ``steps`` counting the way from 0 to 1, of which the
        part behind t is gone. Labels and breaks of the chains are kept, unless ``label`` is given.
        The results lie where their chains do, superposed on them. Raises `UserError` for a time
        outside (0, 1) and for chains with coordinates that are not finite.
        """
        if not isinstance(t, int | float | np.number) or not 0.0 < t < 1.0:
            raise UserError(f"the time t to go back to lies between 0 and 1, got {t!r}")
        if isinstance(chains, Backbones):
            chains = Chains.from_backbones(chains)
        if not len(chains):
            raise UserError("there are no chains to vary")
        bad = [
            name for name, ca in zip(chains.ids, chains.arrays(), strict=True)
            if not np.isfinite(ca).all()
        ]
        if bad:
            raise UserError(f"chain {bad[0]} has coordinates that are not finite: it cannot vary")
        self._keys(seed, first, n)
        source = chains[np.repeat(np.arange(len(chains)), n)].trimmed().to("cpu")
        counts = self._lengths(source.lengths.numpy(), None)
        grid = self._grid(settings.get("steps"))
        begin = float(t)
        if self.role == "student":
            begin = min(grid[:-1], key=lambda u: abs(u - t))
        plan = _Plan(counts, {"index": source.index}, from_chains(source), begin)
        settings.setdefault("label", source.label.tolist())
        out = self._designs(plan, seed=seed, first=first, **settings)
        for row, (size, start) in enumerate(zip(counts, source.arrays(), strict=True)):
            chain = out.ca[row, :size].double().numpy()
            if np.isfinite(chain).all():
                rotation, shift = superpose(chain, start)
                out.ca[row, :size] = torch.from_numpy(chain @ rotation.T + shift).float()
        made = {"time": begin, "starts": dict(zip(out.ids, source.ids, strict=True))}
        return replace(out, index=source.index, provenance=out.provenance | made)

    def anneal(
        self, length: int, n: int = 64, *, power: float = 2.0, steps: int = STEPS,
        label: int | str | None = None, ess: float = 0.5, confidence: bool = True, seed: int = 0,
        batch_size: int = 32,
    ) -> Designs:
        """n chains of the law q^power, q the teacher's, by particles that are weighed.

        Unlike the noise scale gamma this has a law that can be named (`sample.annealed`). The price
        is that particles are chosen among each other: chains of one set are not independent, come
        from few ancestors, and repeat each other where the power is high. The provenance says how
        many distinct chains and ancestors there are, and their effective number; more particles
        come nearer to the law. ``ess`` is the share of the effective number below which particles
        are resampled. Raises `UserError` for a model that is no teacher and impossible requests.
        """
        if self.role != "teacher":
            raise UserError(f"a power is for teachers, whose law has scores; {self.name} is a "
                            f"{self.role}")  # fmt: skip
        if not isinstance(power, int | float | np.number) or not 0.0 < power < np.inf:
            raise UserError(f"power must be a finite number above 0, got {power!r}")
        self._grid(steps)
        if not isinstance(n, int | np.integer) or n < LEAST:
            raise UserError(f"particles choose among each other: n is at least {LEAST}, got {n!r}")
        if np.ndim(length):
            raise UserError(f"particles have one length, got {length!r:.60}")
        counts = self._lengths(length, n)
        keys = self._keys(seed, 0, n).to(self.device)
        labels = self._labels(label, n)
        began = clock.perf_counter()
        size = int(counts[0])
        mask = torch.ones(n, size, dtype=torch.bool, device=self.device)
        cond = {"label": labels.to(self.device)}
        net = _Pieces(self.net, batch_size, self.device)
        drawn, rows = annealed(net, self.process, keys, mask, float(power), steps, cond=cond,
                               ess=ess)  # fmt: skip
        assert isinstance(drawn.x, Tensor) and drawn.weights is not None
        x, finite = drawn.x[rows], drawn.finite[rows]
        spread = torch.zeros_like(x[..., 0])
        if confidence:
            spread = self._errors(net, x, keys, mask, cond)
        weights = drawn.weights
        particles = {
            "effective": float(weights.ess[0]),
            "ancestors": len(weights.ancestors[rows].unique()),
            "distinct": len(rows.unique()),
            "resamplings": int(weights.resamplings[0]),
        }
        if 4 * particles["ancestors"] < n:
            warnings.warn(
                f"the {n} chains of q^{power:g} descend from {particles['ancestors']} of the {n} "
                "first particles: they are far from independent; a lower power or more particles "
                "would help",
                RuntimeWarning, stacklevel=2,
            )
        made = {
            "network_calls": drawn.nfe, "seconds": clock.perf_counter() - began,
            "power": float(power), "seed": int(seed), "independent": False,
            "particles": particles, **self._origin(),
        }
        ca = torch.where(finite[:, None, None], x * SCALE, torch.nan)
        return self._collected(
            ca.cpu(), spread.cpu(), finite.cpu(), counts, labels, int(seed), 0, made
        )

    def _designs(
        self,
        plan: _Plan,
        *,
        steps: int | Sequence[float] | None = None,
        gamma: float | None = None,
        label: int | str | Sequence[int | str] | None = None,
        guidance: float = 1.0,
        weak: Model | None = None,
        mix: float | None = None,
        solver: str = "sde",
        self_condition: bool = True,
        confidence: bool = True,
        seed: int = 0,
        first: int = 0,
        batch_size: int = 32,
        progress: bool = False,
    ) -> Designs:
        """Draw the chains of a plan; the arguments are those of `sample`."""
        counts = plan.counts
        keys = self._keys(seed, first, len(counts))
        if not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise UserError(f"batch_size must be a whole number, got {batch_size!r}")
        for what, number in (("guidance", guidance), ("gamma", gamma)):
            if number is not None and not (
                isinstance(number, int | float | np.number) and 0 <= number < np.inf
            ):
                raise UserError(f"{what} must be a finite number >= 0, got {number!r}")
        labels = self._labels(label, len(counts))
        if guidance != 1.0 and bool((labels == NULL).any()) and weak is None:
            raise UserError(
                f"guidance={guidance} sharpens a label: give one ({', '.join(LABELS)}), or a "
                "weaker model to guide away from"
            )
        share = (1.0 if weak is not None else 0.0) if mix is None else mix
        guides: list[Callable[[Any], Any]] = []
        if guidance != 1.0:
            if self.role != "teacher":
                raise UserError(f"guidance is for teachers; {self.name} is a {self.role}")
            other = None if weak is None else weak.net
            guides.append(partial(guided, weight=float(guidance), weak=other, mix=share))
        if "known" in plan.cond:
            guides.append(Scaffolded)
        if gamma is None:
            gamma = 0.0 if self.role == "flowmap" else GAMMA
        draw = self._drawing(steps, float(gamma), solver, self_condition, guides, plan)
        cond = {**plan.cond, "label": labels}
        began = clock.perf_counter()
        ca = torch.zeros(len(counts), int(counts.max()), 3)
        error = torch.zeros(ca.shape[:2])
        finite = torch.zeros(len(counts), dtype=torch.bool)
        batches = list(_batches(counts, int(batch_size)))

        def one(rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor, int]:
            return self._batch(keys, rows, int(counts[rows[0]]), cond, plan.start, draw, confidence)

        done, calls = 0, 0
        with progress_bar("chains", len(counts), show=progress) as update:
            for rows, (x, spread, good, nfe) in zip(
                batches, each_on_one_thread(one, batches, self.device), strict=True
            ):
                size = x.shape[1]
                ca[rows, :size], error[rows, :size], finite[rows] = x, spread, good
                done, calls = done + len(rows), nfe
                update(done, len(counts))
        made = {
            "network_calls": calls,
            "seconds": clock.perf_counter() - began,
            "gamma": gamma, "guidance": guidance, "seed": int(seed),
            **({"solver": solver} if self.role == "teacher" else {}),
            **self._origin(),
        }
        return self._collected(ca, error, finite, counts, labels, int(seed), int(first), made)

    def _collected(
        self, ca: Tensor, error: Tensor, finite: Tensor, counts: np.ndarray, labels: Tensor,
        seed: int, first: int, made: dict[str, Any],
    ) -> Designs:
        mask = torch.arange(ca.shape[1]) < torch.from_numpy(counts).unsqueeze(1)
        index = torch.arange(ca.shape[1]).expand(mask.shape) * mask
        ids = tuple(f"{self.name}-{seed}-{k}" for k in range(first, first + len(counts)))
        return Designs(ca, mask, ids, index, labels, error, finite, made)

    def _origin(self) -> dict[str, Any]:
        from driftworks import __version__

        return {
            "model": self.name, "weights": self.hash, "role": self.role,
            "driftworks": __version__, "torch": torch.__version__,
        }

    def _lengths(self, lengths: Any, n: int | None) -> np.ndarray:
        given = np.asarray(lengths)
        if given.ndim == 0 and n is not None:
            if not isinstance(n, int | np.integer) or n < 1:
                raise UserError(f"n must be a whole number of at least 1, got {n!r}")
            given = np.full(n, given)
        given = np.atleast_1d(given)
        if given.dtype.kind not in "iu" or given.ndim != 1 or not len(given):
            raise UserError(f"lengths are whole numbers of residues, got {lengths!r:.60}")
        if n is not None and len(given) != n:
            raise UserError(f"n={n} chains are asked for with {len(given)} lengths")
        if given.min() < 2:
            raise UserError(f"a chain needs at least 2 residues, got {int(given.min())}")
        low, high = self.lengths
        if given.min() < low or given.max() > high:
            warnings.warn(
                f"lengths {int(given.min())}-{int(given.max())} reach outside {low}-{high}, on "
                f"which {self.name} was trained: expect worse chains there",
                RuntimeWarning, stacklevel=3,
            )
        return given.astype(np.int64)

    @staticmethod
    def _keys(seed: Any, first: Any, n: Any) -> Keys:
        for what, value, least in (("seed", seed, None), ("first", first, 0), ("n", n, 1)):
            if not isinstance(value, int | np.integer) or (least is not None and value < least):
                raise UserError(f"{what} must be a whole number, got {value!r}")
        return Keys.for_samples(int(seed), range(int(first), int(first) + int(n)))

    @staticmethod
    def _labels(label: Any, n: int) -> Tensor:
        if label is None:
            return torch.full((n,), NULL)
        many = [label] * n if isinstance(label, str | int | np.integer) else list(label)
        if len(many) != n:
            raise UserError(f"{len(many)} labels for {n} chains")
        codes = []
        for one in many:
            code = LABELS.index(one) if isinstance(one, str) and one in LABELS else one
            if not isinstance(code, int | np.integer) or not 0 <= code <= NULL:
                raise UserError(
                    f"unknown label {one!r}; choose {', '.join(LABELS)}, 0..{NULL - 1}, or "
                    f"{NULL} for none"
                )
            codes.append(int(code))
        return torch.tensor(codes)

    def _grid(self, steps: Any) -> tuple[float, ...]:
        """The times of a chain's way, 1 the last: of steps, of times that a student is given, or
        the model's own for None."""
        if steps is None:
            if self.role == "student":
                return (*self.times, 1.0)
            return grids.log(STEPS if self.role == "teacher" else len(self.times))
        if not isinstance(steps, int | np.integer):
            if self.role == "teacher":
                raise UserError("a teacher takes a number of steps, not their times")
            times = tuple(float(t) for t in steps)
            return (*times, 1.0) if self.role == "student" else (0.0, *times, 1.0)
        if steps < 1:
            raise UserError(f"steps must be at least 1, got {steps}")
        if self.role != "student":
            return grids.log(int(steps))
        last = len(self.times) - 1  # its times are a curve with straight pieces
        spread = np.interp(np.linspace(0, last, int(steps)), np.arange(last + 1), self.times)
        return (*spread.tolist(), 1.0)

    def _drawing(
        self, steps: Any, gamma: float, solver: str, self_condition: bool,
        guides: Sequence[Callable[[Any], Any]], plan: _Plan,
    ) -> Draw:
        """How this model draws chains on the residues of a mask, with the settings checked."""
        grid = self._grid(steps)
        if plan.start is not None:
            student = self.role == "student"
            grid = grid[grid.index(plan.begin):] if student else onward(grid, plan.begin)

        def guide(model: Any) -> Any:
            for one in guides:
                model = one(model)
            return model

        scale = gamma if self.role == "student" else 1.0

        def draw(
            keys: Keys, mask: Tensor, cond: dict[str, Tensor], start: Tensor | None
        ) -> Samples:
            shape = (mask.shape[1], 3)
            settings: dict[str, Any] = {"cond": cond, "guide": guide}
            if start is not None:
                x_t = noised(self.process, start, plan.begin, keys, mask, scale)
                settings["initial"] = x_t
            if self.role == "teacher":
                return generate(
                    self.net, self.process, keys, mask, solver=solver, gamma=gamma,
                    self_condition=self_condition, grid=grid, **settings,
                )
            if isinstance(self.net, JumpNet):
                flow = FlowMap(self.net, self.process)
                return flow.sample(keys, shape, mask, gamma=gamma, grid=grid, **settings)
            student = Student(self.net, self.process, grid[:-1])
            if start is None:
                return student.sample(keys, shape, mask, noise=gamma, **settings)
            return sample(
                student, self.process, keys, shape, mask, solver=renoise(gamma), grid=grid,
                stream="student", **settings,
            )

        def counted(*given: Any) -> Samples:
            drawn = draw(*given)
            again = asked_twice(grid[:-1]) * drawn.nfe // (len(grid) - 1)
            return replace(drawn, nfe=drawn.nfe + again)

        return counted if "known" in plan.cond else draw

    def _batch(
        self, keys: Keys, rows: np.ndarray, size: int, told: Mapping[str, Tensor],
        starts: Tensor | None, draw: Draw, confidence: bool,
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        """Chains of one length in angstrom, their residues' errors, who is finite, and the calls
        a chain took."""
        chosen = torch.from_numpy(rows)
        padded = chosen if len(chosen) >= LEAST else chosen.repeat(LEAST)[:LEAST]
        mask = torch.ones(len(padded), size, dtype=torch.bool, device=self.device)
        some = keys[padded].to(self.device)
        cond = {
            name: (v[padded] if v.ndim == 1 else v[padded, :size]).to(self.device)
            for name, v in told.items()
        }
        start = None if starts is None else starts[padded, :size].to(self.device)
        drawn = draw(some, mask, cond, start)
        x = drawn.x
        assert isinstance(x, Tensor)
        spread = torch.zeros_like(x[..., 0])
        if confidence:
            if "motif" in cond:
                cond["motif"] = x  # where it came to lie
            net = self.net
            asked = FlowMap(net, self.process) if isinstance(net, JumpNet) else net
            spread = self._errors(asked, x, some, mask, cond)
        x = torch.where(drawn.finite[:, None, None], x * SCALE, torch.nan)
        count = len(chosen)
        return x[:count].cpu(), spread[:count].cpu(), drawn.finite[:count].cpu(), drawn.nfe

    def _errors(
        self, asked: Any, x: Tensor, keys: Keys, mask: Tensor, cond: dict[str, Tensor]
    ) -> Tensor:
        """Root mean square errors (B, L) in angstrom of chains (B, L, 3) that are put again."""
        total = torch.zeros_like(x[..., 0])
        times = torch.full((len(x),), RENOISED, device=x.device)
        with torch.no_grad():
            for k in range(DRAWS):
                x_t = self.process.bridge(x, times, keys, mask, step=k).x_t
                again = denoise(asked, self.process, x_t, times, mask, cond)["x"]
                total += (again - x).square().sum(-1)
        return (total / DRAWS).sqrt() * SCALE


def _batches(counts: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Rows of chains of one length, at most ``most`` at a time, the longest first."""
    for size in np.unique(counts)[::-1]:
        rows = np.flatnonzero(counts == size)
        for start in range(0, len(rows), most):
            yield rows[start : start + most]
