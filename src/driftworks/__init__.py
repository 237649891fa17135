"""driftworks: a generative suite for science on one shared SDE/interpolant core.

Domains are imported by name, ``from driftworks import molgen``; nothing heavy is imported here.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
