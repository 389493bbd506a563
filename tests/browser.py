"""A real headless Chromium for the tests of the web page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def executable() -> str:
    """Where Chromium is: KM_TEST_CHROMIUM, else Debian's. The tests fail without one."""
    found = os.environ.get("KM_TEST_CHROMIUM") or shutil.which("chromium")
    if found is None:
        pytest.fail(
            "The web page is tested in a real Chromium, and there is none. Install one with "
            "`sudo apt-get install chromium`, or name one in KM_TEST_CHROMIUM."
        )
    return found


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser, for as long as the block runs."""
    path = executable()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()
