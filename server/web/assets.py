"""What the page loads: our style and script, and htmx out of the distribution that carries it."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path

_CARRIER = "django-htmx"
#: Files of the carrier, found by its metadata: nothing of it is imported.
_CARRIED = {
    "htmx.js": "django_htmx/static/django_htmx/htmx-2.min.js",
    "sse.js": "django_htmx/static/django_htmx/ext/hx-sse-2.min.js",
}
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of the page, as it is and packed; the digest makes its address change with its content."""

    content: bytes
    packed: bytes
    media_type: str
    digest: str

    @classmethod
    def of(cls, name: str, content: bytes) -> Asset:
        """The asset of that name."""
        digest = hashlib.sha256(content).hexdigest()[:12]
        return cls(content, gzip.compress(content, 9, mtime=0), _TYPES[Path(name).suffix], digest)


@cache
def load() -> Mapping[str, Asset]:
    """Every asset by its name, read once. FileNotFoundError names one that the installation lacks."""
    carrier = distribution(_CARRIER)
    found = {
        name: Asset.of(name, Path(str(carrier.locate_file(place))).read_bytes())
        for name, place in _CARRIED.items()
    }
    for file in sorted((files("server.web") / "static").iterdir(), key=lambda one: one.name):
        found[file.name] = Asset.of(file.name, file.read_bytes())
    return found
