"""The commands of ``driftworks``, one file a verb; importing them imports nothing heavy."""

from __future__ import annotations
