"""The GFN2-xTB oracle: semi-empirical energies, orbitals, dipoles, forces, relaxed geometries.

GFN2-xTB (Bannwarth, Ehlert, Grimme, J. Chem. Theory Comput. 15, 1652, 2019) through tblite, a few
milliseconds a molecule. Its gaps are not B3LYP gaps (off by up to 4 eV); its dipoles are within
about 0.5 D. Relaxation is L-BFGS on Cartesian coordinates until no atom feels more than `fmax`,
and

    strain = E(given) - E(relaxed)        rmsd = min over rotations of |given - relaxed| / sqrt(N)

tell how far a geometry is from the minimum below it. All atoms count in the RMSD; mirror images
are not superimposed.
"""

from __future__ import annotations

import math
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np

from driftworks.errors import UserError
from driftworks.molgen.oracles.pooled import PooledOracle
from driftworks.molgen.oracles.protocol import Failure, require
from driftworks.molgen.oracles.units import BOHR, DEBYE, HARTREE
from driftworks.molgen.oracles.worker import Engine

__all__ = ["XtbOracle", "engine", "relax", "rmsd", "single_point"]

_FORCE = HARTREE / BOHR


class XtbOracle(PooledOracle):
    """GFN2-xTB of closed-shell molecules, elements H to Rn.

    Values: ``energy`` [hartree], ``homo``, ``lumo``, ``gap`` [eV], ``mu`` [debye] (about the centre
    of nuclear charge, which matters for ions only) and ``max_force``, the largest force on an atom
    [eV/angstrom]. With `relax` they belong to the relaxed geometry, which is the result's
    ``positions``, and ``strain`` [eV], ``rmsd`` [angstrom], ``initial_force`` [eV/angstrom] say
    what relaxing changed.

    Args:
        relax: relax the geometry first.
        fmax: force at which a geometry counts as relaxed [eV/angstrom].
        max_steps: energy evaluations of a relaxation before it is "convergence".
        jobs, timeout, memory_mb: see `PooledOracle`.

    Raises:
        UserError: tblite is not installed, or an option has no meaning.
    """

    name = "xtb"
    title = "GFN2-xTB"
    engine = "driftworks.molgen.oracles.xtb:engine"
    elements = range(1, 87)
    recycle = 5000

    def __init__(
        self,
        relax: bool = False,
        fmax: float = 0.02,
        max_steps: int = 500,
        jobs: int | None = None,
        timeout: float = 30.0,
        memory_mb: float = 2048,
    ) -> None:
        require("tblite", "xtb")
        if not 0 < fmax < math.inf:
            raise UserError(f"xtb oracle: fmax must be a positive force [eV/angstrom], not {fmax}")
        if max_steps < 1:
            raise UserError(f"xtb oracle: max_steps must be above 0, not {max_steps}")
        settings: dict[str, Any] = {
            "oracle": self.name,
            "method": "GFN2-xTB",
            "tblite": version("tblite"),
            "code": 1,
            "relax": bool(relax),
        }
        if relax:
            settings |= {"fmax": float(fmax), "max_steps": int(max_steps)}
        super().__init__(settings, jobs, timeout, memory_mb)
        self.provides = {
            "energy": "hartree",
            "homo": "eV",
            "lumo": "eV",
            "gap": "eV",
            "mu": "debye",
            "max_force": "eV/angstrom",
        }
        if relax:
            self.provides |= {"strain": "eV", "rmsd": "angstrom", "initial_force": "eV/angstrom"}


def engine(settings: dict[str, Any]) -> Engine:
    """The function that a child runs on each of its molecules."""
    for module in ("tblite.interface", *(["scipy.optimize"] if settings["relax"] else [])):
        import_module(module)  # before the clock of the first molecule starts

    def compute(task: dict[str, Any]) -> tuple[dict[str, float], Any, str]:
        numbers = np.array(task["numbers"])
        positions = np.array(task["positions"])
        if not settings["relax"]:
            return single_point(numbers, positions, task["charge"]), None, ""
        relaxed, values = relax(
            numbers, positions, task["charge"], settings["fmax"], settings["max_steps"]
        )
        return values, relaxed.tolist(), ""

    return compute


def single_point(numbers: np.ndarray, positions: np.ndarray, charge: int = 0) -> dict[str, float]:
    """Values of one geometry, in this process.

    Args:
        numbers: atomic numbers (N,).
        positions: (N, 3) [angstrom].
        charge: total charge [e].

    Raises:
        Failure: the self-consistent field did not converge.
    """
    centred = positions - _charge_centre(numbers, positions)
    calculator = _calculator(numbers, centred, charge)
    return _values(_solve(calculator))


def relax(
    numbers: np.ndarray,
    positions: np.ndarray,
    charge: int = 0,
    fmax: float = 0.02,
    max_steps: int = 500,
) -> tuple[np.ndarray, dict[str, float]]:
    """The minimum below a geometry and its values, in this process.

    Args:
        numbers: atomic numbers (N,).
        positions: (N, 3) [angstrom].
        charge: total charge [e].
        fmax: largest force on an atom at the end [eV/angstrom].
        max_steps: energy evaluations allowed.

    Returns:
        (N, 3) [angstrom], laid over `positions`, and the values.

    Raises:
        Failure: no minimum within `max_steps`, or a field that did not converge.
    """
    from scipy.optimize import minimize

    centre = _charge_centre(numbers, positions)
    start = positions - centre
    calculator = _calculator(numbers, start, charge)
    result = _solve(calculator)
    first = _values(result)
    force, relaxed = first["max_force"], start

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal result, force, relaxed
        calculator.update(x.reshape(-1, 3))
        result = _solve(calculator, result)
        gradient = result.get("gradient")
        largest = float(np.linalg.norm(gradient, axis=1).max()) * _FORCE
        if largest < force:
            force, relaxed = largest, x.reshape(-1, 3) * BOHR
        if force <= fmax:
            raise _Relaxed
        return float(result.get("energy")), gradient.ravel()

    try:
        if force > fmax:
            minimize(
                objective,
                start.ravel() / BOHR,
                jac=True,
                method="L-BFGS-B",
                options={"maxfun": max_steps, "maxiter": max_steps, "ftol": 0.0, "gtol": 0.0},
            )
    except _Relaxed:
        pass
    if not force <= fmax:
        raise Failure("convergence", f"largest force {force:.3g} eV/angstrom after relaxing")
    relaxed = relaxed - _charge_centre(numbers, relaxed)
    calculator.update(relaxed / BOHR)
    values = _values(_solve(calculator))
    values["strain"] = (first["energy"] - values["energy"]) * HARTREE
    values["initial_force"] = first["max_force"]
    rotated, values["rmsd"] = _superpose(relaxed, start)
    return rotated + start.mean(axis=0) + centre, values


def rmsd(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square distance of two conformations (N, 3) after the best proper rotation."""
    return _superpose(a, b)[1]


class _Relaxed(Exception):
    """Leaves the minimiser: its own tests are on energies and components, not on forces."""


def _superpose(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, float]:
    """`a` centred and turned onto `b` (Kabsch, Acta Cryst. A 32, 922, 1976), and their RMSD."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    u, _, vt = np.linalg.svd(a.T @ b)
    sign = np.sign(np.linalg.det(u) * np.linalg.det(vt))
    turned = a @ (u * np.array([1.0, 1.0, sign])) @ vt
    return turned, float(np.sqrt(((turned - b) ** 2).sum(axis=1).mean()))


def _charge_centre(numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return (numbers[:, None] * positions).sum(axis=0) / numbers.sum()


def _calculator(numbers: np.ndarray, positions: np.ndarray, charge: int) -> Any:
    from tblite.interface import Calculator

    calculator = Calculator("GFN2-xTB", numbers, positions / BOHR, float(charge))
    calculator.set("verbosity", 0)
    return calculator


def _solve(calculator: Any, previous: Any = None) -> Any:
    from tblite.exceptions import TBLiteRuntimeError

    try:
        return calculator.singlepoint(previous)
    except TBLiteRuntimeError as error:
        raise Failure("convergence", " ".join(str(error).split())) from None


def _values(result: Any) -> dict[str, float]:
    levels = np.asarray(result.get("orbital-energies")) * HARTREE
    occupied = round(float(np.sum(result.get("orbital-occupations"))) / 2)
    homo = float(levels[occupied - 1])
    # A minimal basis can be full (a hydride ion): then there is no LUMO
    lumo = float(levels[occupied]) if occupied < len(levels) else math.nan
    return {
        "energy": float(result.get("energy")),
        "homo": homo,
        "lumo": lumo,
        "gap": lumo - homo,
        "mu": float(np.linalg.norm(result.get("dipole"))) * DEBYE,
        "max_force": float(np.linalg.norm(result.get("gradient"), axis=1).max()) * _FORCE,
    }
