"""Errors that a user can mend: one line that names the bad value and the choices."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(ValueError):
    """A mistake in what the user asked for; its message is shown without a traceback."""
