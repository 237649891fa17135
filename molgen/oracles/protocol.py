"""What an oracle is asked, what it answers, and what every oracle refuses in the same words.

One `OracleInput` in, one `OracleResult` out, whatever happens in between. A result's status is

    ok            every value is there and finite
    input         this molecule cannot be asked (odd electrons, unknown element, NaN coordinates)
    resource      it needed more memory than allowed
    timeout       it needed more time than allowed
    convergence   the equations found no solution
    crash         the program died or raised something unforeseen
    nan           it finished, with a value that is not a number

after the taxonomy of QCEngine (Smith et al., WIREs Comput. Mol. Sci. 2021, e1491).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np

from driftworks.errors import UserError

if TYPE_CHECKING:
    from rdkit.Chem import Mol

__all__ = [
    "MAX_ATOMS",
    "MIN_DISTANCE",
    "Callback",
    "Failure",
    "Oracle",
    "OracleInput",
    "OracleResult",
    "Status",
    "refusal",
    "require",
]

Status = Literal["ok", "input", "resource", "timeout", "convergence", "crash", "nan"]

#: Largest molecule that is computed at all.
MAX_ATOMS = 500
#: Nuclei closer than this are one point [angstrom]; the shortest bond, H-H, is 0.74.
MIN_DISTANCE = 0.2


@dataclass(frozen=True)
class OracleInput:
    """A molecule to ask about.

    Attributes:
        numbers: atomic numbers (N,).
        positions: (N, 3) [angstrom].
        charge: total charge [e].
        mol: the RDKit molecule where bonds are known; only the RDKit oracle needs it.
    """

    numbers: np.ndarray
    positions: np.ndarray
    charge: int = 0
    mol: Mol | None = None

    @classmethod
    def from_rdkit(cls, mol: Mol) -> OracleInput:
        """Atoms, first conformer and formal charge of an RDKit molecule with explicit hydrogens.

        A molecule without a conformer gets NaN coordinates, which the 3D oracles refuse.
        """
        n = mol.GetNumAtoms()
        positions = np.full((n, 3), np.nan)
        if mol.GetNumConformers():
            positions = np.array(mol.GetConformer().GetPositions(), dtype=float).reshape(n, 3)
        numbers = np.array([a.GetAtomicNum() for a in mol.GetAtoms()], dtype=np.int64)
        return cls(numbers, positions, sum(a.GetFormalCharge() for a in mol.GetAtoms()), mol)


@dataclass(frozen=True)
class OracleResult:
    """An oracle's answer.

    Attributes:
        status: see the module; values are complete only when it is "ok".
        reason: one line on what went wrong, or on what was out of the ordinary in an "ok" result.
        values: property -> value in the unit that the oracle's `provides` states.
        positions: (N, 3) [angstrom], the geometry that `values` belong to if it was relaxed.
        seconds: wall time spent on this molecule.
    """

    status: Status
    reason: str = ""
    values: dict[str, float] = field(default_factory=dict)
    positions: np.ndarray | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the values can be used."""
        return self.status == "ok"


class Failure(Exception):
    """Raised by the code of an oracle for an outcome that is foreseen but is not a value."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


#: Called as results arrive, in the order of arrival, with (index of the input, result).
Callback = Callable[[int, OracleResult], None]


@runtime_checkable
class Oracle(Protocol):
    """The protocol of all oracles."""

    #: The name under which `get` knows it.
    name: str
    #: All that decides the values (method, basis, versions), and nothing that does not (number of
    #: processes, time and memory limits): flat and JSON-able, fit to be part of a cache key.
    settings: dict[str, Any]
    #: Property -> unit of every value of an "ok" result.
    provides: dict[str, str]

    def evaluate(
        self,
        mols: Sequence[OracleInput],
        progress: bool = False,
        callback: Callback | None = None,
    ) -> list[OracleResult]:
        """One result per molecule, in order. Never raises because of a molecule."""
        ...

    def close(self) -> None:
        """Ends the oracle's processes, if it has any. It can be used again afterwards."""
        ...


def refusal(mol: OracleInput, elements: range | frozenset[int], method: str) -> str:
    """Why a closed-shell method cannot be asked about this molecule; "" when it can.

    Args:
        mol: the molecule.
        elements: atomic numbers that the method covers.
        method: its name, for the message.
    """
    numbers, positions = np.asarray(mol.numbers), np.asarray(mol.positions)
    n = numbers.size
    if n == 0 or n > MAX_ATOMS:
        return f"{n} atoms; between 1 and {MAX_ATOMS} can be computed"
    if numbers.shape != (n,) or positions.shape != (n, 3):
        return f"atomic numbers {numbers.shape} and positions {positions.shape} do not fit"
    unknown = sorted({int(z) for z in numbers} - set(elements))
    if unknown:
        return f"no {method} parameters for atomic number {', '.join(map(str, unknown))}"
    if not np.isfinite(positions).all():
        return "coordinates are not finite"
    if np.abs(positions).max() > 1e4:
        return "coordinates beyond 10000 angstrom"
    i, j = np.triu_indices(n, 1)
    distances = np.linalg.norm(positions[i] - positions[j], axis=1)
    if n > 1 and distances.min() < MIN_DISTANCE:
        k = int(distances.argmin())
        return f"atoms {i[k]} and {j[k]} coincide ({distances[k]:.3f} angstrom apart)"
    electrons = int(numbers.sum()) - int(mol.charge)
    if electrons <= 0:
        return f"charge {mol.charge} leaves no electrons"
    if electrons % 2:
        return f"odd electron count ({electrons})"
    return ""


def require(package: str, extra: str) -> None:
    """Raises UserError, with the command that mends it, unless `package` is installed."""
    if find_spec(package) is None:
        raise UserError(
            f"the {extra} oracle needs {package}, which is not installed: "
            f"pip install 'driftworks[{extra}]'"
        )
