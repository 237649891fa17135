"""Generative models of protein backbones. The rooms are laid out; nothing is built here yet, and
there is no public API: a folder with a name, so that the layout of the suite is fixed from the
start.
"""

from __future__ import annotations

if not __name__.startswith("driftworks."):
    raise ImportError(
        f"this folder was imported as {__name__!r}; import it as driftworks.protein "
        "(pip install -e . in the checkout makes that name available)"
    )

__all__: list[str] = []
