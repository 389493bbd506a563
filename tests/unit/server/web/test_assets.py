"""What the page loads: small, ours or from the distribution that carries it, and nothing of Django's."""

from __future__ import annotations

import gzip
import subprocess
import sys

from server.web import assets


def test_everything_together_is_small() -> None:
    found = assets.load()
    assert {"htmx.js", "sse.js", "page.js", "ask.js", "page.css", "icon.svg"} == set(found)
    assert sum(len(one.content) for one in found.values()) < 120_000
    for one in found.values():
        assert gzip.decompress(one.packed) == one.content


def test_htmx_is_its_second_version() -> None:
    found = assets.load()
    assert b"htmx" in found["htmx.js"].content
    assert b'version:"2.' in found["htmx.js"].content
    assert b"sse" in found["sse.js"].content


def test_an_address_changes_with_the_content() -> None:
    assert assets.Asset.of("a.js", b"1").digest != assets.Asset.of("a.js", b"2").digest


def test_django_is_not_imported() -> None:
    found = "any('django' in name for name in sys.modules)"
    check = f"import sys, server.web.assets as a; a.load(); sys.exit({found})"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
