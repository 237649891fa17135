"""Oracles: what a molecule's properties are, asked of RDKit, GFN2-xTB or DFT.

    xtb = get("xtb", relax=True)
    results = xtb.evaluate([OracleInput.from_rdkit(mol) for mol in mols])
    [r.values["gap"] for r in results if r.ok]

Every member answers in the same units (see each oracle's ``provides``), returns exactly one
`OracleResult` per input in the order asked, and never raises because of a molecule: what went
wrong is the result's ``status`` and ``reason``.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import TYPE_CHECKING, Any

from driftworks.errors import UserError

if TYPE_CHECKING:
    from driftworks.molgen.oracles.descriptors import DescriptorOracle
    from driftworks.molgen.oracles.dft import DftOracle
    from driftworks.molgen.oracles.protocol import Oracle, OracleInput, OracleResult
    from driftworks.molgen.oracles.xtb import XtbOracle

__all__ = [
    "DescriptorOracle",
    "DftOracle",
    "ORACLES",
    "Oracle",
    "OracleInput",
    "OracleResult",
    "XtbOracle",
    "get",
]

#: The oracles by the name a campaign writes: (module, class).
ORACLES = {
    "rdkit": ("descriptors", "DescriptorOracle"),
    "xtb": ("xtb", "XtbOracle"),
    "dft": ("dft", "DftOracle"),
}

_EXPORTS = {
    "Oracle": "protocol",
    "OracleInput": "protocol",
    "OracleResult": "protocol",
    **{name: module for module, name in ORACLES.values()},
}


def get(name: str, **options: Any) -> Oracle:
    """The oracle called `name`, built with its `options`.

    Args:
        name: "rdkit", "xtb" or "dft".
        options: keyword arguments of the oracle's class, as ``preset="screen"``.

    Raises:
        UserError: the name or an option is unknown, or the oracle's program is not installed.
    """
    if name not in ORACLES:
        raise UserError(f"unknown oracle {name!r}; choose from {', '.join(ORACLES)}")
    module, kind = ORACLES[name]
    oracle = getattr(import_module(f"{__name__}.{module}"), kind)
    known = inspect.signature(oracle).parameters
    for option in options:
        if option not in known:
            raise UserError(
                f"the {name} oracle has no option {option!r}; it has {', '.join(known) or 'none'}"
            )
    return oracle(**options)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
