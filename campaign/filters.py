"""Molecules that are valid but not wanted: elements, size, substructures, structural alerts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from driftworks.campaign.spec import Filters

if TYPE_CHECKING:
    from rdkit.Chem import Mol

__all__ = ["Screen"]


class Screen:
    """The filters of a campaign that need the molecular graph only, compiled once."""

    def __init__(self, filters: Filters) -> None:
        from rdkit import Chem
        from rdkit.Chem.FilterCatalog import FilterCatalog, FilterCatalogParams

        self.filters = filters
        self._require = [(smarts, Chem.MolFromSmarts(smarts)) for smarts in filters.require]
        self._exclude = [(smarts, Chem.MolFromSmarts(smarts)) for smarts in filters.exclude]
        self._alerts = []
        for name in filters.alerts:
            params = FilterCatalogParams()
            params.AddCatalog(getattr(FilterCatalogParams.FilterCatalogs, name))
            self._alerts.append((name, FilterCatalog(params)))

    def reason(self, mol: Mol) -> str:
        """Why the sanitised molecule is not wanted, "" if it is; hydrogens play no part."""
        from rdkit import Chem

        mol = Chem.RemoveHs(mol)
        if self.filters.elements is not None:
            strange = {a.GetSymbol() for a in mol.GetAtoms()} - {"H", *self.filters.elements}
            if strange:
                return f"element {min(strange)}"
        if self.filters.heavy_atoms is not None:
            few, many = self.filters.heavy_atoms
            if not few <= mol.GetNumHeavyAtoms() <= many:
                return "heavy atoms"
        for smarts, pattern in self._require:
            if not mol.HasSubstructMatch(pattern):
                return f"lacks {smarts}"
        for smarts, pattern in self._exclude:
            if mol.HasSubstructMatch(pattern):
                return f"has {smarts}"
        for name, catalogue in self._alerts:
            if catalogue.HasMatch(mol):
                return f"alert {name}"
        return ""
