"""Whether the built site loads anything from elsewhere: no script, style, font or picture may."""

from __future__ import annotations

import re
import sys
from pathlib import Path

# What a browser fetches by itself; a link (a href) is fetched only by a reader.
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|audio|video|embed)\b[^>]*\bsrc=["']?(https?:)?//|"""
    r"""<link\b(?=[^>]*\brel=["']?(?:stylesheet|preload|icon|preconnect|prefetch|dns-prefetch))"""
    r"""[^>]*\bhref=["']?(https?:)?//"""
)
STYLE = re.compile(r"""(?:@import\s+["']|url\(["']?)(https?:)?//""")

found = []
for file in sorted(Path(sys.argv[1]).rglob("*")):
    pattern = {".html": LOADED, ".css": STYLE}.get(file.suffix)
    if pattern is not None:
        text = file.read_text(encoding="utf-8")
        found += [f"{file}: {text[match.start() : match.end() + 60]!r}" for match in pattern.finditer(text)]
print("\n".join(found) or "the site loads nothing from elsewhere")
sys.exit(bool(found))
