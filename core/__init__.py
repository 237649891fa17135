"""The shared core: paths between noise and data, predictions, laws, solvers, one sampling loop.

Time runs from t = 0 (noise) to t = 1 (data). Nothing here knows a scientific domain. A domain
declares a `Process` (named parts, each a space with a path) and a network, trains with
`matching_loss` and samples with ``sample.sample``. The nouns are gathered here; modules of verbs
(``grids``, ``laws``, ``predict``, ``sample``, ``solvers``, ``weigh``, ``distill``, ``edit``, ...)
are imported by name, ``from driftworks.core import grids``.
"""

from __future__ import annotations

if not __name__.startswith("driftworks."):
    raise ImportError(
        f"this folder was imported as {__name__!r}; import it as driftworks.core "
        "(pip install -e . in the checkout makes that name available)"
    )

from driftworks.core.bridges import TwoSided
from driftworks.core.charts import Logarithm, Shift, charted
from driftworks.core.ctmc import Masking, Replacing
from driftworks.core.frames import Geodesic, Heat, Rotations
from driftworks.core.guide import autoguide, cfg
from driftworks.core.keys import Keys
from driftworks.core.laws import Gaussian, Mixture
from driftworks.core.likelihood import decode, encode, log_prob
from driftworks.core.particles import Resampling
from driftworks.core.paths import Path
from driftworks.core.predict import Precondition
from driftworks.core.process import Bridge, Part, Process, State
from driftworks.core.spaces import Centred, Flat, PairTokens, Space, Symmetric, Tokens
from driftworks.core.train import Ema, matching_loss

__all__ = [
    "Bridge",
    "Centred",
    "Ema",
    "Flat",
    "Gaussian",
    "Geodesic",
    "Heat",
    "Keys",
    "Logarithm",
    "Masking",
    "Mixture",
    "PairTokens",
    "Part",
    "Path",
    "Precondition",
    "Process",
    "Replacing",
    "Resampling",
    "Rotations",
    "Shift",
    "Space",
    "State",
    "Symmetric",
    "Tokens",
    "TwoSided",
    "autoguide",
    "cfg",
    "charted",
    "decode",
    "encode",
    "log_prob",
    "matching_loss",
]
