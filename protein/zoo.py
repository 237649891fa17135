r"""Models by name: load a checkpoint, ask it for protein chains.

    student = protein.load("ca80-sid")
    designs = student.sample([64, 72, 80] * 10, steps=8, gamma=0.45, seed=3)

Sample i is a function of (weights, seed, i, its length, settings): its noise comes from its own
key, and on a CPU chains are computed in single precision beside others of exactly their length. So
a set of designs does not change with batch size, order or the other lengths asked for, and can be
drawn in pieces with ``first``. On a GPU the last bits may differ with the batch.

A teacher follows its flow (`sample`), a student jumps between a few declared times
(`core.student`), a flow map between times of any grid (`core.flowmap`); all answer the same call.

Confidence. A finished chain is given noise again, to t = 0.8, and cleaned up by the model, a few
times; the root mean square distance in angstrom by which a residue misses its place says how far
the model would have put it elsewhere. As a B-factor it is 8 pi^2 / 3 times its square.
"""

from __future__ import annotations

import math
import os
import time as clock
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
from driftworks.core.run import pick_device
from driftworks.core.sample import Samples
from driftworks.core.student import Student
from driftworks.core.workers import each_on_one_thread
from driftworks.data.progress import progress_bar
from driftworks.errors import UserError
from driftworks.protein.chains import Chains
from driftworks.protein.network import ChainNet, JumpNet, NetConfig, build, build_jumping
from driftworks.protein.process import LABELS, NULL, SCALE, chain_process
from driftworks.protein.sample import GAMMA, STEPS, generate, guided

__all__ = ["Designs", "Model", "available", "load"]

ROLES = ("teacher", "student", "flowmap")
#: Chains of fewer rows than this take other routines in BLAS, whose last bits differ.
LEAST = 4
RENOISED, DRAWS = 0.8, 4


@dataclass(frozen=True, eq=False, repr=False)
class Designs(Chains):
    """Chains that a model has drawn, with what it says about them.

    ``confidence`` (B, L) is the root mean square error in angstrom that the model expects of each
    residue, 0 beyond the end and where it was not asked for; ``finite`` (B,) is False for samples
    that failed, whose coordinates are NaN; ``provenance`` says how the set was made.
    """

    confidence: Tensor
    finite: Tensor
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def b_factors(self) -> Tensor:
        """Confidence as isotropic B-factors 8 pi^2 <u^2> / 3 (B, L) in square angstrom."""
        return 8 * math.pi**2 / 3 * self.confidence.square()

    def __getitem__(self, rows: Any) -> Designs:
        chains = super().__getitem__(rows)
        kept = torch.arange(len(self))
        kept = kept[[rows % len(self)]] if isinstance(rows, int | np.integer) else kept[
            rows if isinstance(rows, slice | Tensor) else np.asarray(rows)
        ]
        return self._around(chains, self.confidence[kept], self.finite[kept])

    def to(self, device: torch.device | str) -> Designs:
        return self._around(
            super().to(device), self.confidence.to(device), self.finite.to(device)
        )

    def trimmed(self) -> Designs:
        short = super().trimmed()
        return self._around(short, self.confidence[:, : short.mask.shape[1]], self.finite)

    def _around(self, chains: Chains, confidence: Tensor, finite: Tensor) -> Designs:
        return Designs(
            chains.ca, chains.mask, chains.ids, chains.index, chains.label, confidence, finite,
            self.provenance,
        )


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
        counts = self._lengths(lengths, n)
        for what, value, least in (("seed", seed, None), ("first", first, 0),
                                   ("batch_size", batch_size, 1)):
            if not isinstance(value, int | np.integer) or (least is not None and value < least):
                raise UserError(f"{what} must be a whole number, got {value!r}")
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
        guide = partial(
            guided, weight=float(guidance), weak=None if weak is None else weak.net, mix=share
        ) if guidance != 1.0 else None
        if gamma is None:
            gamma = 0.0 if self.role == "flowmap" else GAMMA
        draw = self._drawing(steps, float(gamma), solver, self_condition, guide)
        keys = Keys.for_samples(int(seed), range(int(first), int(first) + len(counts)))
        began = clock.perf_counter()
        ca = torch.zeros(len(counts), int(counts.max()), 3)
        error = torch.zeros(ca.shape[:2])
        finite = torch.zeros(len(counts), dtype=torch.bool)
        batches = [
            rows[start : start + batch_size]
            for size in np.unique(counts)[::-1]
            for rows in [np.flatnonzero(counts == size)]
            for start in range(0, len(rows), batch_size)
        ]

        def one(rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor, int]:
            return self._batch(keys, rows, int(counts[rows[0]]), labels, draw, confidence)

        done, calls = 0, 0
        with progress_bar("chains", len(counts), show=progress) as update:
            for rows, (x, spread, good, nfe) in zip(
                batches, each_on_one_thread(one, batches, self.device), strict=True
            ):
                size = x.shape[1]
                ca[rows, :size], error[rows, :size], finite[rows] = x, spread, good
                done, calls = done + len(rows), nfe
                update(done, len(counts))
        mask = torch.arange(ca.shape[1]) < torch.from_numpy(counts).unsqueeze(1)
        index = torch.arange(ca.shape[1]).expand(mask.shape) * mask
        ids = tuple(f"{self.name}-{seed}-{k}" for k in range(first, first + len(counts)))
        made = {
            "network_calls": calls,
            "seconds": clock.perf_counter() - began,
            "gamma": gamma, "guidance": guidance, "seed": int(seed),
            **({"solver": solver} if self.role == "teacher" else {}),
            **self._origin(),
        }
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
            import warnings

            warnings.warn(
                f"lengths {int(given.min())}-{int(given.max())} reach outside {low}-{high}, on "
                f"which {self.name} was trained: expect worse chains there",
                RuntimeWarning, stacklevel=3,
            )
        return given.astype(np.int64)

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

    def _drawing(
        self, steps: Any, gamma: float, solver: str, self_condition: bool,
        guide: Callable[[Any], Any] | None,
    ) -> Callable[[Keys, Tensor, dict[str, Tensor]], Samples]:
        """How this model draws chains on the residues of a mask, with the settings checked."""
        if steps is not None and not isinstance(steps, int | np.integer):
            steps = tuple(float(t) for t in steps)
        elif steps is not None:
            steps = int(steps)
            if steps < 1:
                raise UserError(f"steps must be at least 1, got {steps}")
        if self.role == "teacher":
            if isinstance(steps, tuple):
                raise UserError("a teacher takes a number of steps, not their times")
            return lambda keys, mask, cond: generate(
                self.net, self.process, keys, mask, STEPS if steps is None else steps,
                solver=solver, gamma=gamma, cond=cond, guide=guide,
                self_condition=self_condition,
            )
        if guide is not None:
            raise UserError(f"guidance is for teachers; {self.name} is a {self.role}")
        if self.role == "student":
            student = Student(self.net, self.process, self.times)
            return lambda keys, mask, cond: student.sample(
                keys, (mask.shape[1], 3), mask, steps=steps,
                noise=gamma, cond=cond,
            )
        assert isinstance(self.net, JumpNet)
        flow = FlowMap(self.net, self.process)
        grid = (0.0, *steps, 1.0) if isinstance(steps, tuple) else None
        return lambda keys, mask, cond: flow.sample(
            keys, (mask.shape[1], 3), mask, gamma=gamma, cond=cond,
            grid=grid or grids.log(len(self.times) if steps is None else steps),
        )

    def _batch(
        self, keys: Keys, rows: np.ndarray, size: int, labels: Tensor,
        draw: Callable[[Keys, Tensor, dict[str, Tensor]], Samples], confidence: bool,
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        """Chains of one length in angstrom, their residues' errors, who is finite, and the calls
        a chain took."""
        chosen = torch.from_numpy(rows)
        padded = chosen if len(chosen) >= LEAST else chosen.repeat(LEAST)[:LEAST]
        mask = torch.ones(len(padded), size, dtype=torch.bool, device=self.device)
        some = keys[padded].to(self.device)
        cond = {"label": labels[padded].to(self.device)}
        drawn = draw(some, mask, cond)
        x = drawn.x
        assert isinstance(x, Tensor)
        spread = torch.zeros_like(x[..., 0])
        net = self.net
        asked: Any = FlowMap(net, self.process) if isinstance(net, JumpNet) else net
        if confidence:
            total = torch.zeros_like(spread)
            times = torch.full((len(x),), RENOISED, device=self.device)
            with torch.no_grad():
                for k in range(DRAWS):
                    x_t = self.process.bridge(x, times, some, mask, step=k).x_t
                    again = denoise(asked, self.process, x_t, times, mask, cond)["x"]
                    total += (again - x).square().sum(-1)
            spread = (total / DRAWS).sqrt() * SCALE
        x = torch.where(drawn.finite[:, None, None], x * SCALE, torch.nan)
        count = len(chosen)
        return x[:count].cpu(), spread[:count].cpu(), drawn.finite[:count].cpu(), drawn.nfe
