"""``python -m driftworks`` is the command ``driftworks``."""

from __future__ import annotations

import sys

from driftworks.cli import main

sys.exit(main())
