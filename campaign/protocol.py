"""What a campaign asks of the things it drives, and nothing more.

A *generator* draws molecules: ``driftworks.molgen.load(name)`` is one, and so is any object with a
name, a hash of its weights and `sample`. Its promise is that sample i depends on (seed, i) alone,
so that a batch can be drawn again after a crash and a batch more is no change to those before.

An *oracle* measures molecules; its protocol is that of ``driftworks.molgen.oracles``, repeated here
in the part that a campaign uses. A generator may also estimate properties: with a method
``predict(library)`` and ``predicts``, which names them with their units, it serves as the oracle
"regressor".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from driftworks.molgen.library import Library
    from driftworks.molgen.oracles.protocol import OracleInput, OracleResult

__all__ = ["Generator", "Oracle", "Regressor"]


@runtime_checkable
class Generator(Protocol):
    """Draws molecules.

    `sample` returns a `Library` that accounts for all `n` samples ``first .. first + n - 1``: as
    molecules (valid or not), with their global sample number in ``indices``, or as counted
    ``failures``.
    """

    name: str
    hash: str

    def sample(
        self,
        n: int,
        targets: Mapping[str, Any] | None = None,
        *,
        seed: int = 0,
        first: int = 0,
        progress: bool = False,
    ) -> Library: ...


class Oracle(Protocol):
    """Measures molecules; one result per molecule, in order, never an exception for a molecule."""

    name: str
    settings: dict[str, Any]
    provides: dict[str, str]

    def evaluate(
        self,
        mols: Sequence[OracleInput],
        progress: bool = False,
        callback: Callable[[int, OracleResult], None] | None = None,
    ) -> list[OracleResult]: ...

    def close(self) -> None: ...


class Regressor:
    """A generator's estimates behind the protocol of an oracle, under the name "regressor".

    `predict` maps a library of B molecules to property -> (B,) values; `provides` are the units and
    `identity` names the weights. All molecules go through the network together, because a value's
    last bits depend on the batch: the results of one call are recorded together or not at all.
    """

    name = "regressor"

    def __init__(
        self,
        predict: Callable[[Library], Mapping[str, np.ndarray]],
        provides: Mapping[str, str],
        identity: str,
    ) -> None:
        self.predict = predict
        self.settings: dict[str, Any] = {"oracle": self.name, "weights": identity}
        self.provides = dict(provides)

    @classmethod
    def of(cls, generator: Any) -> Regressor | None:
        """The estimates that come with a generator, None where there are none."""
        from driftworks.errors import UserError

        if not hasattr(generator, "predict"):
            return None
        if hasattr(generator, "predicts"):
            return cls(generator.predict, generator.predicts, str(generator.hash))
        # molgen's models have theirs from one network that is shipped beside them, or is not.
        from driftworks.molgen.regressor import load_regressor
        from driftworks.molgen.targets import UNITS

        try:
            shipped = load_regressor(str(generator.device))
        except UserError:
            return None
        units = {name: UNITS[name] for name in shipped.properties}
        return cls(shipped.predict, units, shipped.hash)

    def evaluate(
        self,
        mols: Sequence[OracleInput],
        progress: bool = False,
        callback: Callable[[int, OracleResult], None] | None = None,
    ) -> list[OracleResult]:
        """See `Oracle.evaluate`; an estimate that is not finite has status "nan"."""
        from driftworks.molgen.library import Library
        from driftworks.molgen.oracles.protocol import OracleResult

        columns = self.predict(Library.from_rdkit([mol.mol for mol in mols]))
        results = []
        for i in range(len(mols)):
            values = {name: float(columns[name][i]) for name in self.provides}
            wrong = sorted(name for name, value in values.items() if not np.isfinite(value))
            results.append(
                OracleResult("nan", f"not finite: {', '.join(wrong)}")
                if wrong
                else OracleResult("ok", values=values)
            )
            if callback is not None:
                callback(i, results[-1])
        return results

    def close(self) -> None:
        """Nothing to end."""
