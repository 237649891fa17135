"""The RDKit oracle: validity and the drug-likeness descriptors of a Lewis structure.

QED (Bickerton et al., Nature Chem. 4, 90, 2012), the synthetic accessibility score of Ertl and
Schuffenhauer (J. Cheminf. 1, 8, 2009: 1 easy .. 10 hard), Crippen's logP (J. Chem. Inf. Comput.
Sci. 39, 868, 1999) and the molecular weight, all on the molecule as its bonds state it. Geometry
plays no part. The SA score is RDKit's own contributed module, found through ``RDConfig``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from driftworks.errors import UserError
from driftworks.molgen.oracles.progress import tracked
from driftworks.molgen.oracles.protocol import Callback, OracleInput, OracleResult

__all__ = ["DescriptorOracle", "synthetic_accessibility"]


class DescriptorOracle:
    """RDKit's verdict and descriptors; runs in this process, about a millisecond a molecule.

    A structure that RDKit can sanitise is "ok" with ``valid`` 1.0 or 0.0 (the strict verdict of
    `driftworks.molgen.validity.check`, its reason in the result's ``reason``) and all descriptors.
    One that it cannot has no descriptors: status "input", ``values == {"valid": 0.0}``.
    """

    name = "rdkit"
    provides = {"valid": "", "qed": "", "sa": "", "logp": "", "weight": "g/mol"}

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {"oracle": self.name, "rdkit": version("rdkit"), "code": 1}

    def evaluate(
        self,
        mols: Sequence[OracleInput],
        progress: bool = False,
        callback: Callback | None = None,
    ) -> list[OracleResult]:
        """See `Oracle.evaluate`; an input without ``mol`` is answered with status "input"."""
        results = []
        with tracked("RDKit", len(mols), progress) as advance:
            for index, mol in enumerate(mols):
                start = time.perf_counter()
                status, reason, values = _describe(mol)
                result = OracleResult(status, reason, values, seconds=time.perf_counter() - start)
                results.append(result)
                advance(result)
                if callback is not None:
                    callback(index, result)
        return results

    def close(self) -> None:
        """Nothing to end."""


def synthetic_accessibility(mol: Any) -> float:
    """SA score of a sanitised RDKit molecule: 1 (easy to make) to 10 (hard).

    Raises:
        UserError: this RDKit was packaged without its Contrib folder.
    """
    return float(_sascorer().calculateScore(mol))


@cache
def _sascorer() -> ModuleType:
    from rdkit.Chem import RDConfig

    path = Path(RDConfig.RDContribDir) / "SA_Score" / "sascorer.py"
    spec = spec_from_file_location("driftworks_sascorer", path)
    if spec is None or spec.loader is None or not path.exists():
        raise UserError(f"RDKit's SA score is missing: no file {path}; install RDKit's pip wheel")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _describe(mol: OracleInput) -> tuple[Any, str, dict[str, float]]:
    from rdkit import Chem, rdBase
    from rdkit.Chem import QED, Crippen, Descriptors

    from driftworks.molgen.validity import check

    if mol.mol is None:
        return "input", "no bonds are known for this molecule", {}
    try:
        with rdBase.BlockLogs():
            verdict = check(mol.mol)
            if verdict.reason in ("empty", "rings"):  # sanitising these fails, or takes for ever
                return "input", verdict.reason, {"valid": 0.0}
            clean = Chem.Mol(mol.mol)
            problem = Chem.SanitizeMol(clean, catchErrors=True)
            if problem != Chem.SanitizeFlags.SANITIZE_NONE:
                return "input", f"does not sanitise: {problem.name}", {"valid": 0.0}
            clean = Chem.RemoveHs(clean)
            values = {
                "valid": float(verdict.strict),
                "qed": QED.qed(clean),
                "sa": synthetic_accessibility(clean),
                "logp": Crippen.MolLogP(clean),  # type: ignore[attr-defined]
                "weight": Descriptors.MolWt(clean),  # type: ignore[attr-defined]
            }
    except UserError:
        raise
    except Exception as error:  # a descriptor that cannot treat this molecule ends nothing
        return "crash", f"{type(error).__name__}: {error}", {}
    return "ok", verdict.reason, {key: float(value) for key, value in values.items()}
