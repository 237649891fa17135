"""Molecule tables and sets of graphs: QM9, the PDB's chemical components, a user's own files.

``data.qm9()``, ``data.ccd()`` and ``data.read(path)`` all give one `MoleculeTable`; what could not
be read is listed in its ``failures``. `data.graphs` loads published sets of graphs and draws
families of them. Only numpy is imported here; RDKit, biotite, networkx and the network wait until a
loader needs them.
"""

from __future__ import annotations

if not __name__.startswith("driftworks."):
    raise ImportError(
        f"this folder was imported as {__name__!r}; import it as driftworks.data "
        "(pip install -e . in the checkout makes that name available)"
    )

from driftworks.data import graphs
from driftworks.data.ccd import ccd
from driftworks.data.qm9 import qm9
from driftworks.data.read import read
from driftworks.data.table import Failure, Molecule, MoleculeTable

__all__ = ["Failure", "Molecule", "MoleculeTable", "ccd", "graphs", "qm9", "read"]
