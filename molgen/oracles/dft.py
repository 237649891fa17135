"""The DFT oracle: B3LYP at the level of QM9's labels, in PySCF.

Closed-shell Kohn-Sham with ``b3lypg`` (B3LYP with VWN-III, as Gaussian has it) in QM9's basis
(`qm9_basis`). Orbital energies give HOMO, LUMO and gap, the density gives the dipole, coupled-
perturbed equations (`response`) the polarisability. Integrals are density-fitted; what the two
presets differ in, and what they cost and keep:

    qm9      even-tempered auxiliary basis of ratio 1.6 (2 uHa from exact integrals), grid 3,
             energy to 1e-9: QM9's columns to their printed digits
    screen   def2-universal-jkfit, grid 1, energy to 1e-6: several times cheaper,
             gap within 0.1 mHa, dipole within 3e-3 D, energy within 0.2 mHa

The self-consistent field climbs a ladder until it holds: DIIS, a level shift, second order
(Sun, Chem. Phys. Lett. 683, 291, 2017). A solution with an occupied level above an empty one does
not count.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np

from driftworks.errors import UserError
from driftworks.molgen.oracles.pooled import PooledOracle
from driftworks.molgen.oracles.protocol import Failure, require
from driftworks.molgen.oracles.qm9_basis import ELEMENTS, basis
from driftworks.molgen.oracles.units import BOHR, DEBYE, HARTREE
from driftworks.molgen.oracles.worker import Engine

__all__ = ["PRESETS", "DftOracle", "converge", "engine", "estimate", "ground_state"]

#: What decides the values, by preset.
PRESETS: dict[str, dict[str, Any]] = {
    "qm9": {"fitting": "etb", "grid": 3, "conv_tol": 1e-9, "alpha": True},
    "screen": {"fitting": "jkfit", "grid": 1, "conv_tol": 1e-6, "alpha": False},
}

_FITTINGS = ("etb", "jkfit", "exact")
_RELAXATIONS = ("none", "xtb")
_ETB_RATIO = 1.6

#: Share of the address space that PySCF plans with; the rest is programs and what it overlooks.
_PLANNED = 0.6

#: Basis functions per element.
_FUNCTIONS = {1: 5, 6: 28, 7: 28, 8: 28, 9: 28}


class DftOracle(PooledOracle):
    """B3LYP/6-31G(2df,p) of closed-shell molecules of H, C, N, O, F.

    Values: ``energy`` [hartree], ``homo``, ``lumo``, ``gap`` [eV], ``mu`` [debye] (about the
    centre of nuclear charge, which matters for ions only) and, with `alpha`, the isotropic
    polarisability ``alpha`` [bohr^3]. A field that took more than DIIS says so in ``reason``.

    Args:
        preset: "qm9" (parity with the labels) or "screen" (several times cheaper).
        relax: "none" takes the geometry as given; "xtb" relaxes it by GFN2-xTB first and returns
            it in the result's ``positions``.
        alpha: compute the polarisability; None leaves it to the preset ("qm9" does).
        fitting: "etb", "jkfit" or "exact" integrals in place of the preset's.
        jobs, timeout, memory_mb: see `PooledOracle`; nine heavy atoms need 1.6 GB at most.

    Raises:
        UserError: PySCF (or tblite, for `relax`) is not installed, or an option has no meaning.
    """

    name = "dft"
    title = "B3LYP"
    engine = "driftworks.molgen.oracles.dft:engine"
    elements = frozenset(ELEMENTS)
    recycle = 50

    def __init__(
        self,
        preset: str = "qm9",
        relax: str = "none",
        alpha: bool | None = None,
        fitting: str | None = None,
        jobs: int | None = None,
        timeout: float = 900.0,
        memory_mb: float = 6000,
    ) -> None:
        for option, value, choices in (
            ("preset", preset, tuple(PRESETS)),
            ("relax", relax, _RELAXATIONS),
            ("fitting", fitting, (None, *_FITTINGS)),
        ):
            if value not in choices:
                known = ", ".join(repr(choice) for choice in choices if choice)
                raise UserError(f"dft oracle: unknown {option} {value!r}; choose from {known}")
        require("pyscf", "dft")
        settings: dict[str, Any] = {
            "oracle": self.name,
            "method": "b3lypg/6-31G(2df,p)-6d7f",
            "pyscf": version("pyscf"),
            "code": 1,
            "relax": relax,
            **PRESETS[preset],
        }
        if relax == "xtb":
            require("tblite", "xtb")
            settings["tblite"] = version("tblite")
        if alpha is not None:
            settings["alpha"] = bool(alpha)
        if fitting is not None:
            settings["fitting"] = fitting
        super().__init__(settings, jobs, timeout, memory_mb)
        self.preset = preset
        self.provides = {
            "energy": "hartree",
            "homo": "eV",
            "lumo": "eV",
            "gap": "eV",
            "mu": "debye",
        }
        if settings["alpha"]:
            self.provides["alpha"] = "bohr^3"

    def estimate(self, numbers: Iterable[int]) -> float:
        """Expected seconds on one core for a molecule of these atomic numbers; see `estimate`."""
        return estimate(numbers, self.settings["fitting"], self.settings["alpha"])


def engine(settings: dict[str, Any]) -> Engine:
    """The function that a child runs on each of its molecules."""
    from pyscf import lib

    from driftworks.molgen.oracles import xtb

    for module in ("pyscf.df", "pyscf.dft", "pyscf.scf.cphf"):
        import_module(module)  # before the clock of the first molecule starts
    lib.num_threads(1)
    if settings["relax"] == "xtb":
        xtb.engine({"relax": True})

    def compute(task: dict[str, Any]) -> tuple[dict[str, float], Any, str]:
        numbers, positions = np.array(task["numbers"]), np.array(task["positions"])
        relaxed = None
        if settings["relax"] == "xtb":
            positions, _ = xtb.relax(numbers, positions, task["charge"])
            relaxed = positions.tolist()
        values, remark = ground_state(
            numbers, positions, task["charge"], settings, max_memory=task["memory"] * _PLANNED
        )
        return values, relaxed, remark

    return compute


def ground_state(
    numbers: np.ndarray,
    positions: np.ndarray,
    charge: int,
    settings: dict[str, Any],
    max_memory: float = 2.5e9,
) -> tuple[dict[str, float], str]:
    """Values of one geometry, and a remark on the field, in this process.

    Args:
        numbers: atomic numbers (N,).
        positions: (N, 3) [angstrom].
        charge: total charge [e].
        settings: "fitting", "grid", "conv_tol" and "alpha", as in `PRESETS`.
        max_memory: what PySCF plans with [bytes].

    Raises:
        Failure: no self-consistent field, or no response to an electric field, was found.
    """
    from driftworks.molgen.oracles.response import polarisability

    try:
        mf, remark = converge(_kohn_sham(numbers, positions, charge, settings, max_memory))
        homo, lumo = _frontier(mf)
        values = {
            "energy": float(mf.e_tot),
            "homo": homo * HARTREE,
            "lumo": lumo * HARTREE,
            "gap": (lumo - homo) * HARTREE,
            "mu": float(np.linalg.norm(mf.dip_moment(unit="AU", verbose=0))) * DEBYE,
        }
        if settings["alpha"]:
            values["alpha"] = float(np.trace(polarisability(mf))) / 3
    except np.linalg.LinAlgError as error:  # a field that diverged to NaN has no eigenvectors
        raise Failure("convergence", f"linear algebra: {error}") from None
    return values, remark


def converge(mf: Any, cycles: int = 50) -> tuple[Any, str]:
    """Climbs the ladder DIIS, level shift, second order until `mf` is self-consistent.

    Args:
        mf: PySCF RKS object before ``kernel()``; it is changed and returned.
        cycles: iterations of the first rung; the second has twice as many.

    Returns:
        `mf`, and which rung it took ("" for the first).

    Raises:
        Failure: no rung held.
    """
    mf.max_cycle = cycles
    mf.kernel()
    if _settled(mf):
        return mf, ""
    mf.max_cycle, mf.level_shift = 2 * cycles, 0.3
    mf.kernel(dm0=mf.make_rdm1())
    mf.level_shift = 0
    if _settled(mf):
        return mf, "converged with a level shift"
    second = mf.newton()
    second.max_cycle = 50
    second.kernel(mf.mo_coeff, mf.mo_occ)
    mf.mo_coeff, mf.mo_energy, mf.mo_occ = second.mo_coeff, second.mo_energy, second.mo_occ
    mf.e_tot, mf.converged = second.e_tot, second.converged
    if _settled(mf):
        return mf, "converged in second order"
    reason = "an occupied orbital above an empty one" if mf.converged else "no self-consistency"
    raise Failure("convergence", f"{reason} after DIIS, level shift and second order")


#: fitting -> (CPU seconds at 100 basis functions, power) of the field and of the polarisability:
#: fits to QM9 molecules of 38 to 246 functions on one core of a 2020s server.
_COST = {
    "etb": ((3.0, 2.8), (2.0, 2.9)),
    "jkfit": ((0.85, 2.9), (1.6, 2.9)),
    "exact": ((5.0, 3.2), (2.7, 3.5)),
}
_OVERHEAD = 0.1


def estimate(numbers: Iterable[int], fitting: str, alpha: bool) -> float:
    """Expected CPU seconds of a molecule in a warm child, within a factor of two of a free core.

    Args:
        numbers: atomic numbers.
        fitting: "etb", "jkfit" or "exact".
        alpha: whether the polarisability is included.
    """
    size = sum(_FUNCTIONS.get(int(z), 0) for z in numbers) / 100
    field, response = _COST[fitting]
    seconds = _OVERHEAD + field[0] * size ** field[1]
    return float(seconds + response[0] * size ** response[1] if alpha else seconds)


def _kohn_sham(
    numbers: np.ndarray,
    positions: np.ndarray,
    charge: int,
    settings: dict[str, Any],
    max_memory: float,
) -> Any:
    from pyscf import df, dft, gto

    centre = (numbers[:, None] * positions).sum(axis=0) / numbers.sum()
    symbols = [ELEMENTS[int(z)] for z in numbers]
    mol = gto.M(
        atom=list(zip(symbols, (positions - centre) / BOHR, strict=True)),
        unit="Bohr",
        charge=int(charge),
        basis=basis(set(symbols)),
        max_memory=max_memory / 1e6,
        verbose=0,
    )
    mf = dft.RKS(mol, xc="b3lypg")
    if settings["fitting"] == "etb":
        mf = mf.density_fit(auxbasis=df.aug_etb(mol, beta=_ETB_RATIO))
    elif settings["fitting"] == "jkfit":
        mf = mf.density_fit(auxbasis="def2-universal-jkfit")
    mf.grids.level = settings["grid"]
    mf.conv_tol = settings["conv_tol"]
    mf.chkfile = None
    return mf


def _frontier(mf: Any) -> tuple[float, float]:
    occupied = mf.mo_occ > 0
    return float(mf.mo_energy[occupied].max()), float(mf.mo_energy[~occupied].min())


def _settled(mf: Any) -> bool:
    if not mf.converged:
        return False
    homo, lumo = _frontier(mf)
    return homo < lumo
