"""A generator without a network: sample i is drawn, embedded and possibly spoilt by (seed, i).

It keeps the promises of a real generator (sample i depends on (seed, i) alone, all samples
accounted for) and has all the faults of one: broken valences, fragments, repeats, and samples that
never become molecules.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem
from rdkit.Chem import Descriptors, rdDistGeom

from driftworks.molgen.library import Library
from driftworks.molgen.molecule import Molecules
from driftworks.molgen.oracles.protocol import OracleInput, OracleResult

HEADS = ("C", "CC", "N", "O", "F", "N#C", "OC", "NC", "CC(C)", "FC", "C=C", "C#C")
TAILS = ("C", "CC", "O", "N", "F", "C#N", "C=O", "CO", "C1CC1", "C(N)=O", "C(F)F", "c1ccco1")


class Double:
    """See the module; `hash` can be changed to play other weights."""

    name = "double"
    properties = ("weight", "tpsa")

    def __init__(self, hash: str = "0" * 64) -> None:
        self.hash = hash
        self.calls: list[tuple[int, int]] = []
        self.targets: Any = None

    def sample(
        self,
        n: int,
        targets: Any = None,
        *,
        seed: int = 0,
        first: int = 0,
        progress: bool = False,
        **options: Any,
    ) -> Library:
        self.calls.append((first, n))
        self.targets = targets
        mols, indices = [], []
        failures: dict[str, int] = {}
        for index in range(first, first + n):
            mol = draw(seed, index)
            if mol is None:
                failures["not finite"] = failures.get("not finite", 0) + 1
            else:
                mols.append(mol)
                indices.append(index)
        return Library(
            Molecules.cat([Molecules.from_rdkit([m]) for m in mols]),
            requested=n,
            seed=seed,
            failures=failures,
            indices=np.array(indices, dtype=np.int64),
        )


def draw(seed: int, index: int) -> Chem.Mol | None:
    """Sample `index` of `seed`: None, or a molecule with hydrogens and a conformer."""
    rng = np.random.default_rng([seed, index])
    fate = rng.random()
    if fate < 0.05:
        return None
    smiles = HEADS[rng.integers(len(HEADS))] + "C" + TAILS[rng.integers(len(TAILS))]
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    Chem.Kekulize(mol, clearAromaticFlags=True)
    settings: Any = rdDistGeom.ETKDGv3()
    settings.randomSeed = int(rng.integers(2**31))
    assert rdDistGeom.EmbedMolecule(mol, settings) == 0
    if fate < 0.15:  # a hydrogen falls off
        mol = Chem.RWMol(mol)
        mol.RemoveAtom(mol.GetNumAtoms() - 1)
    elif fate < 0.2:  # a bond too many
        mol = Chem.RWMol(mol)
        mol.GetBondWithIdx(0).SetBondType(Chem.BondType.TRIPLE)
    for atom in mol.GetAtoms():
        atom.SetNoImplicit(True)
    return Chem.Mol(mol)


class Descriptors3D:
    """A cheap oracle that works on real geometry: weight, TPSA, radius of gyration."""

    provides = {"weight": "g/mol", "tpsa": "angstrom^2", "gyration": "angstrom"}

    def __init__(self, name: str = "shape", pause: float = 0.0, log: Path | None = None) -> None:
        self.name = name
        self.settings: dict[str, Any] = {"oracle": name, "code": 1}
        self.pause, self.log = pause, log

    def evaluate(
        self, mols: Any, progress: bool = False, callback: Any = None
    ) -> list[OracleResult]:
        results = []
        for i, asked in enumerate(mols):
            time.sleep(self.pause)
            results.append(self.answer(asked))
            if self.log is not None:
                with self.log.open("a") as out:
                    what = hashlib.sha256(np.round(asked.positions, 6).tobytes()).hexdigest()
                    out.write(what + "\n")
            if callback is not None:
                callback(i, results[-1])
        return results

    def answer(self, asked: OracleInput) -> OracleResult:
        x = asked.positions - asked.positions.mean(axis=0)
        return OracleResult(
            "ok",
            values={
                "weight": Descriptors.MolWt(asked.mol),
                "tpsa": Descriptors.TPSA(asked.mol),
                "gyration": float(np.sqrt((x**2).sum(axis=1).mean())),
            },
            seconds=self.pause,
        )

    def close(self) -> None:
        pass

