"""The web page in a real Chromium, against the real server: from a first visit to a receipt.

The tests are one story, told in order; screenshots of it stay under tests/output/page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser import chromium
from tests.e2e.conftest import RunningServer

SMALL = Path(__file__).parents[1] / "data" / "small.md"
SHOTS = Path(__file__).parents[1] / "output" / "page"
QUESTION = "Who keeps the key of the workshop?"
#: A training of seconds, on what the document itself says.
RECIPE = {"kinds": ["repeat"], "steps": 4, "evaluations": 2, "batch_tokens": 192}
_TRAINED_MS = 120_000
_ANSWERED_MS = 60_000
#: Counts how far the page's content moved by itself.
_WATCH_SHIFTS = """
window.shifts = [];
new PerformanceObserver((list) => {
  for (const one of list.getEntries()) if (!one.hadRecentInput) {
    window.shifts.push([one.value, ...one.sources.map((source) => source.node?.outerHTML?.slice(0, 80))]);
  }
}).observe({ type: "layout-shift", buffered: true });
"""
#: Milliseconds from the navigation to the first content.
_FIRST_PAINT = """() => new Promise((resolve) => new PerformanceObserver((list) => {
  for (const one of list.getEntriesByName("first-contentful-paint")) resolve(one.startTime);
}).observe({ type: "paint", buffered: true }))"""
#: Bytes of all that the page has loaded, unpacked.
_WEIGHT = """() => ["navigation", "resource"].flatMap((kind) => performance.getEntriesByType(kind))
  .reduce((sum, one) => sum + one.decodedBodySize, 0)"""


@dataclass
class Reader:
    """Somebody's browser window, and what it complained of."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)

    def sign_in(self, key: str) -> None:
        """By the form."""
        self.page.goto(self.url)
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("button", name="Sign in").click()
        expect(self.page.get_by_role("heading", level=1, name="Documents")).to_be_visible()

    def shoot(self, name: str) -> None:
        """A screenshot that is kept."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png", full_page=True)

    def accessible(self) -> None:
        """Without anything serious that axe finds, in light and in dark."""
        for scheme in ("light", "dark"):
            self.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
            found = Axe().run(self.page).response["violations"]
            bad = [
                (scheme, one["id"], [node["html"] for node in one["nodes"]])
                for one in found
                if one["impact"] in ("serious", "critical")
            ]
            assert bad == []
        self.page.emulate_media(color_scheme="light")

    def answer(self) -> Locator:
        """The newest answer, whole."""
        newest = self.page.locator("#answers .answer").first
        expect(newest.locator("[aria-busy]")).to_have_count(0, timeout=_ANSWERED_MS)
        return newest


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=20_000)
    with chromium() as found:
        yield found


def reader(browser: Browser, server: RunningServer, **options: Any) -> Reader:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
    context.set_default_timeout(20_000)
    context.add_init_script(_WATCH_SHIFTS)
    opened = Reader(context.new_page(), server.url)
    page = opened.page
    page.on(
        "console",
        lambda said: (
            opened.complaints.append(f"{said.text} {said.location}") if said.type == "error" else None
        ),
    )
    page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    return opened


@pytest.fixture(scope="module")
def admin(browser: Browser, server: RunningServer) -> Reader:
    """Who runs the server, signed in by the link that `km serve` prints."""
    opened = reader(browser, server)
    opened.page.goto(f"{server.url}/#{server.admin_key}")
    expect(opened.page.get_by_role("heading", level=1, name="Documents")).to_be_visible()
    return opened


@pytest.fixture(scope="module")
def keys(admin: Reader) -> dict[str, str]:
    """Two users that the administrator has made on the page, and their keys."""
    found = {}
    admin.page.get_by_role("link", name="People").click()
    for name in ("Mira", "Tomas"):
        users = admin.page.locator("#users")
        users.get_by_label("Name").fill(name)
        users.get_by_role("button", name="Create a user").click()
        expect(users.get_by_text(f"The first key of {name}")).to_be_visible()
        found[name] = users.locator("#secret").inner_text()
    return found


@pytest.fixture(scope="module")
def mira(browser: Browser, server: RunningServer, keys: dict[str, str]) -> Reader:
    """Who uploads."""
    opened = reader(browser, server)
    opened.sign_in(keys["Mira"])
    return opened


@pytest.fixture(scope="module")
def tomas(browser: Browser, server: RunningServer, keys: dict[str, str]) -> Reader:
    """With whom it is shared, on a phone."""
    opened = reader(browser, server, is_mobile=True, has_touch=True, device_scale_factor=2)
    opened.page.set_viewport_size({"width": 390, "height": 844})
    opened.sign_in(keys["Tomas"])
    return opened


def test_the_administrators_link_signs_in_and_leaves_no_key_behind(admin: Reader) -> None:
    assert "km_" not in admin.page.url
    assert admin.page.evaluate("document.cookie") == ""


def test_people_are_managed_accessibly(admin: Reader, keys: dict[str, str]) -> None:
    assert all(re.fullmatch(r"km_[\w-]{43}", key) for key in keys.values())
    admin.accessible()
    admin.shoot("people")
    admin.page.get_by_role("link", name="Keys").click()
    expect(admin.page.get_by_role("heading", level=1, name="API keys")).to_be_visible()
    admin.accessible()
    admin.shoot("keys")


def test_workers_are_shown_and_followed(admin: Reader) -> None:
    page = admin.page
    page.get_by_role("link", name="Workers").click()
    row = page.get_by_role("table").get_by_role("row").nth(1)
    expect(row).to_contain_text("idle")
    expect(row).to_contain_text("default")
    with page.expect_response(lambda response: response.url.endswith("/ui/workers/rows")):
        admin.accessible()
    expect(row).to_contain_text("default")
    admin.shoot("workers")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    admin.shoot("workers-phone")
    page.set_viewport_size({"width": 1280, "height": 900})


def test_a_first_visit_is_light_quick_and_accessible(mira: Reader) -> None:
    mira.page.reload()
    painted = mira.page.evaluate(_FIRST_PAINT)
    weight = mira.page.evaluate(_WEIGHT)
    assert 50_000 < weight <= 300_000
    assert painted <= 1000
    expect(mira.page.get_by_role("button", name="Add the sample document")).to_be_visible()
    mira.accessible()
    mira.shoot("first-visit")


def test_a_file_that_cannot_be_read_is_refused_with_what_to_do(mira: Reader) -> None:
    blob = {"name": "core.bin", "mimeType": "application/octet-stream", "buffer": b"\x7fELF\0\1"}
    mira.page.locator("#files").set_input_files(blob)  # type: ignore[arg-type]
    expect(mira.page.locator("#uploads .bad")).to_contain_text("PDF")
    # The browser tells of the 415 on its console too.
    assert "415" in mira.complaints.pop()


def test_a_file_is_dropped_and_its_training_streams_without_a_shift(mira: Reader) -> None:
    page = mira.page
    page.get_by_text("How to train").click()
    page.get_by_label("Fields of the recipe, as JSON").fill(json.dumps(RECIPE))
    dropped = page.evaluate_handle(
        """(text) => {
          const data = new DataTransfer();
          data.items.add(new File([text], "workshop.md", { type: "text/markdown" }));
          return data;
        }""",
        SMALL.read_text(),
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    expect(page.get_by_role("heading", level=1, name="workshop")).to_be_visible()
    expect(page.locator("#hint")).to_contain_text("is being trained")
    mira.shoot("training")
    expect(page.locator("#hint")).to_contain_text("The KM is trained", timeout=_TRAINED_MS)
    expect(page.locator("#facts")).to_contain_text("KM ready")
    assert page.locator(".curve.loss").get_attribute("points")
    assert page.locator(".dot.share").count() >= 2
    assert page.evaluate("window.shifts") == []
    expect(page.get_by_role("status").get_by_text("The KM is trained")).to_be_visible()


def test_an_answer_says_how_it_was_made_and_where_it_stands(mira: Reader) -> None:
    page = mira.page
    page.get_by_text("Options").click()
    page.get_by_label("Longest answer, tokens").fill("16")
    page.get_by_label("Question", exact=True).fill(QUESTION)
    page.keyboard.press("Enter")
    answer = mira.answer()
    expect(answer.locator("dl")).to_contain_text("KM + retrieval")
    expect(answer.locator(".why")).to_contain_text("the document's KM is trained")
    answer.get_by_text("passages in the prompt").click()
    expect(answer.locator("mark").first).to_be_visible()
    assert answer.locator(".place .here").count() == 2


def test_every_way_is_compared(mira: Reader) -> None:
    mira.page.get_by_role("button", name="Compare all ways").click()
    answer = mira.answer()
    ways = answer.locator(".way h4").all_inner_texts()
    assert ways == ["Base", "Retrieval", "KM", "KM + retrieval", "Whole document"]
    costs = answer.locator(".costs tbody tr").all_inner_texts()
    assert len(costs) == 5
    tokens = dict.fromkeys(ways, 0)
    for row in answer.locator(".costs tbody tr").all():
        name, prompt = row.locator("th").inner_text(), row.locator("td span").first.inner_text()
        tokens[name] = int(re.sub(r"\D", "", prompt))
    assert tokens["KM"] == tokens["Base"] < tokens["Retrieval"] < tokens["Whole document"]
    mira.accessible()
    mira.shoot("compare")


def test_it_is_shared_asked_by_the_other_and_taken_back(mira: Reader, tomas: Reader) -> None:
    sharing = mira.page.locator("#sharing")
    sharing.get_by_label("Name").fill("Tomas")
    sharing.get_by_role("button", name="Share", exact=True).click()
    expect(sharing.get_by_text("Tomas")).to_be_visible()

    page = tomas.page
    page.reload()
    page.get_by_role("link", name="workshop").click()
    expect(page.get_by_role("button", name="Delete the document…")).to_have_count(0)
    page.get_by_label("Question", exact=True).fill(QUESTION)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(tomas.answer().locator("dl")).to_contain_text("tokens")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    tomas.accessible()
    tomas.shoot("phone")

    sharing.get_by_role("button", name="Share with Tomas no longer").click()
    expect(sharing.get_by_text("Tomas")).to_have_count(0)
    assert tomas.complaints == []
    page.reload()
    expect(page.get_by_role("heading", level=1, name="There is nothing here")).to_be_visible()


def test_deleting_shows_the_receipt(mira: Reader) -> None:
    page = mira.page
    page.get_by_role("link", name="← Documents").click()
    expect(page.get_by_role("row", name="workshop")).to_contain_text("KM ready")
    mira.accessible()
    mira.shoot("list")
    page.get_by_role("link", name="workshop").click()
    page.get_by_role("button", name="Delete the document…").click()
    page.get_by_role("button", name="Delete it").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("“workshop” is gone")
    expect(page.get_by_role("row", name="kms")).to_contain_text("1")
    mira.accessible()
    mira.shoot("receipt")
    page.get_by_role("link", name="Back to your documents").click()
    expect(page.get_by_role("button", name="Add the sample document")).to_be_visible()


def test_nothing_was_complained_of(mira: Reader, admin: Reader) -> None:
    assert mira.complaints == []
    assert admin.complaints == []
