r"""Models by name: load a checkpoint, ask it for molecules.

    model = molgen.load("qm9")
    library = model.sample(200, targets={"mu": 4.0, "gap": 6.0}, seed=7)

Sample i is a function of (weights, seed, i, settings): its size, targets and noise come from its
own key, and molecules are computed beside others of exactly their size, without padding. So a
library does not change with the batch size, and can be drawn in pieces with ``first``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from driftworks.core import shelf
from driftworks.core.keys import Keys
from driftworks.core.run import pick_device
from driftworks.core.workers import each_on_one_thread
from driftworks.data.progress import progress_bar
from driftworks.errors import UserError
from driftworks.molgen.library import Library
from driftworks.molgen.molecule import Molecules
from driftworks.molgen.network import NetConfig, build
from driftworks.molgen.process import molecular_process, to_molecules
from driftworks.molgen.sample import generate
from driftworks.molgen.targets import Target, parse, size_distribution

__all__ = ["FALLBACK", "Model", "available", "load"]

Atoms = int | tuple[int, int] | np.ndarray | None
_Drawn = tuple[Molecules, Tensor]
_STATISTICS = ("sizes", "share", "mean", "covariance", "ranges")  # of `train.size_statistics`
FALLBACK = {"qm9": "qm9-small"}  # the model that stands in when the named one is not shipped


def available() -> dict[str, Path]:
    """Names and folders of the shipped molecule models."""
    return shelf.available("molgen")


def load(name: str | os.PathLike[str] = "qm9", device: str = "auto") -> Model:
    """A model by name or by the folder of its checkpoint.

    ``"qm9"`` falls back to ``"qm9-small"`` where the large model is not shipped. Raises `UserError`
    for an unknown name and for a damaged checkpoint.
    """
    title, tensors, meta = shelf.fetch(name, "molgen", FALLBACK)
    return Model(title, tensors, meta, pick_device(device))


class Model:
    """A trained molecular flow, ready to be asked.

    Attributes: ``name``, ``hash`` (SHA-256 of the weights), ``meta`` (configuration, training
    record, statistics of sizes), ``properties`` it can be steered by, ``ranges`` it saw of them.
    """

    def __init__(self, name: str, tensors: dict[str, Tensor], meta: dict[str, Any],
                 device: torch.device):
        self.name, self.meta, self.device = name, meta, device
        self.hash: str = meta["sha256"]
        try:
            self.config = NetConfig.model_validate(meta["config"]["net"])
            self.net = build(self.config)
            self.net.load_state_dict({k: v.float() for k, v in tensors.items()})
            self.statistics: dict[str, Any] = {k: meta["sizes"][k] for k in _STATISTICS}
        except KeyError as error:
            raise UserError(f"checkpoint {name!r}: its model.json lacks {error}") from None
        except (TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"checkpoint {name!r} does not fit this version: {reason}") from None
        broken = [k for k, v in tensors.items() if not torch.isfinite(v).all()]
        if broken:
            raise UserError(f"checkpoint {name!r} holds weights that are not finite: {broken[0]}")
        self.net.to(device).eval().requires_grad_(False)
        self.process = molecular_process(self.config)

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.net.parameters())
        return (f"Model({self.name!r}, {count / 1e6:.2f} M parameters, steered by "
                f"{', '.join(self.properties)})")

    @property
    def properties(self) -> tuple[str, ...]:
        return self.config.properties

    @property
    def ranges(self) -> dict[str, list[float]]:
        """[min, 1 %, 99 %, max] of every property in the training data, in the property's unit."""
        return self.statistics["ranges"]

    def sample(
        self,
        n: int,
        targets: Mapping[str, Any] | None = None,
        seed: int = 0,
        *,
        first: int = 0,
        steps: int = 100,
        guidance: float = 1.0,
        atoms: Atoms = None,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Library:
        """Draw samples ``first`` .. ``first + n - 1`` of ``seed``.

        Args:
            n: molecules requested.
            targets: property -> value, "value unit", (low, high), "min", "max" or an array of n
                values (`molgen.targets`); properties not named are left free.
            steps: network evaluations a molecule (doubled by ``guidance`` other than 1).
            guidance: classifier-free guidance weight; 1 is the conditional model itself.
            atoms: number of atoms, hydrogens included, a range, or an array of n numbers; drawn
                from p(N | targets) when not given.
            batch_size: molecules computed together; changes speed and memory, not molecules.

        Returns a `Library` with its molecules in the order of their index; samples whose state did
        not stay finite are counted in ``failures``. Raises `UserError` on impossible requests.
        """
        for name, value in {"n": n, "steps": steps, "batch_size": batch_size, "first": first,
                            "seed": seed}.items():
            if not isinstance(value, int | np.integer):
                raise UserError(f"{name} must be a whole number, got {value!r}")
        n, steps, batch_size, first, seed = map(int, (n, steps, batch_size, first, seed))
        if first + n > 1 << 62:
            raise UserError(f"first={first} is too large: samples are numbered below 2**62")
        if n < 1 or steps < 1 or batch_size < 1 or first < 0:
            raise UserError(
                f"n, steps and batch_size must be at least 1 and first at least 0, got n={n}, "
                f"steps={steps}, batch_size={batch_size}, first={first}"
            )
        if not (isinstance(guidance, int | float | np.number) and 0 <= guidance < np.inf):
            raise UserError(f"guidance must be a number >= 0, got {guidance!r}")
        guidance = float(guidance)
        if isinstance(atoms, np.integer):
            atoms = int(atoms)
        wanted = parse(targets, self.ranges)
        keys = Keys.for_samples(seed, range(first, first + n))
        values = {t.name: t.values(_uniform(keys, f"target/{t.name}")) for t in wanted}
        sizes = self._sizes(keys, wanted, values, atoms)
        cond = torch.full((n, len(self.properties)), torch.nan)
        for name, column in values.items():
            cond[:, self.properties.index(name)] = torch.from_numpy(column).float()

        batches = [
            rows[start : start + batch_size]
            for size in np.unique(sizes)[::-1]
            for rows in [np.flatnonzero(sizes == size)]
            for start in range(0, len(rows), batch_size)
        ]

        def draw(rows: np.ndarray) -> tuple[Molecules, Tensor]:
            return self._batch(keys, cond, rows, int(sizes[rows[0]]), steps, guidance)

        parts: list[Molecules] = []
        order: list[int] = []
        lost = 0
        done = 0
        with progress_bar("molecules", n, show=progress) as update:
            for rows, (molecules, finite) in zip(
                batches, each_on_one_thread(draw, batches, self.device), strict=True
            ):
                lost += int((~finite).sum())
                parts.append(molecules)
                order += rows[finite.numpy()].tolist()
                done += len(rows)
                update(done, n)
        rank = np.argsort(order, kind="stable")
        index = np.asarray(order, dtype=np.int64)[rank]
        return Library(
            Molecules.cat(parts)[rank.tolist()],
            targets={k: v[index] for k, v in values.items()},
            requested=n,
            seed=seed,
            failures={"not_finite": lost},
            provenance=self._provenance(wanted, steps, guidance, atoms),
            indices=index + first,
        )

    def _batch(self, keys: Keys, cond: Tensor, rows: np.ndarray, size: int, steps: int,
               guidance: float) -> tuple[Molecules, Tensor]:
        """The finite molecules of one size, computed together, and which of the rows they are."""
        chosen = torch.from_numpy(rows)
        # Matrices of fewer than four rows take other routines in BLAS, whose last bits differ.
        padded = chosen if len(chosen) >= 4 else chosen.repeat(4)[:4]
        mask = torch.ones(len(padded), size, dtype=torch.bool, device=self.device)
        asked = cond[padded].to(self.device)
        state, finite = generate(
            self.net, self.process, keys[padded].to(self.device), mask, steps,
            None if bool(asked.isnan().all()) else asked, guidance,
        )
        finite[len(chosen) :] = False
        good = {k: v[finite] for k, v in state.items()}  # a failed sample may still hold masks
        molecules = to_molecules(good, mask[finite], self.config).to("cpu")
        return molecules, finite[: len(chosen)].cpu()

    def _sizes(self, keys: Keys, wanted: list[Target], values: dict[str, np.ndarray],
               atoms: Atoms) -> np.ndarray:
        trained = self.statistics["sizes"]
        if isinstance(atoms, np.ndarray):
            if atoms.shape != (len(keys),) or not np.isin(atoms, trained).all():
                raise UserError(
                    f"atoms must be {len(keys)} numbers in {min(trained)}..{max(trained)}"
                )
            return atoms
        ends = (min(trained), max(trained)) if atoms is None else (
            atoms if isinstance(atoms, tuple | list) else (atoms, atoms)
        )
        if len(ends) != 2 or not all(isinstance(x, int | np.integer) for x in ends):
            raise UserError(
                f"atoms={atoms!r} is not a number of atoms, a pair (low, high) or an array of "
                f"{len(keys)} numbers"
            )
        low, high = ends
        if not (2 <= low <= high <= max(trained) and high >= min(trained)):
            raise UserError(
                f"atoms={atoms} is not possible: this model makes molecules of {min(trained)} to "
                f"{max(trained)} atoms, hydrogens included"
            )
        if low == high and low in trained:
            return np.full(len(keys), low)
        names = [t.name for t in wanted]
        table = np.stack([values[k] for k in names], -1) if names else np.zeros((len(keys), 0))
        sizes, p = size_distribution(self.statistics, names, self.properties, table)
        p = np.where((sizes >= low) & (sizes <= high), p, 0.0)
        if not (p.sum(1) > 0).all():
            raise UserError(f"atoms={atoms}: no molecule of such a size was seen in training")
        cumulative = np.cumsum(p / p.sum(1, keepdims=True), 1)
        u = _uniform(keys, "size")[:, None]
        return sizes[np.minimum((cumulative < u).sum(1), len(sizes) - 1)]

    def _provenance(self, wanted: list[Target], steps: int, guidance: float,
                    atoms: Atoms) -> dict[str, Any]:
        from driftworks import __version__

        return {
            "model": self.name,
            "weights": self.hash,
            "steps": steps,
            "guidance": guidance,
            "atoms": "given one by one" if isinstance(atoms, np.ndarray) else atoms,
            "targets": {t.name: [t.low, t.high, t.unit] for t in wanted},
            "driftworks": __version__,
            "torch": torch.__version__,
        }

    def predict(self, library: Library | Molecules) -> dict[str, np.ndarray]:
        """Properties as the regressor shipped with the models estimates them, {name: (B,)}.

        See `molgen.regressor`; raises `UserError` when no regressor is shipped.
        """
        from driftworks.molgen.regressor import load_regressor

        return load_regressor(str(self.device)).predict(library)


def _uniform(keys: Keys, stream: str) -> np.ndarray:
    return keys.uniform(stream, 0, (), torch.float64).numpy()
