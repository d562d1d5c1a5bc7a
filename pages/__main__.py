"""``python -m pages [--pictures]``."""

from __future__ import annotations

import sys

from pages import made

made.write()
if "--pictures" in sys.argv[1:]:
    from pages import pictures

    pictures.draw()
