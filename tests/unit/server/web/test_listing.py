"""The list of documents: what it shows, how it is searched and paged, and how documents come in."""

from __future__ import annotations

import re
import time

from km_registry.registry import Registry
from server.web.sample import sample, shown_questions
from tests.unit.server.conftest import TEXT, Someone, error_of, train
from tests.unit.server.intake.files import page_of_the_web
from tests.unit.server.web.conftest import Browser


def titles(html: str) -> list[str]:
    return re.findall(r'<a id="to-doc_\w+"[^>]*>([^<]*)</a>', html)


async def test_a_first_visit_says_what_to_do(page: Browser) -> None:
    html = await page.see("/")
    assert "Add the sample document" in html
    assert "PDF, DOCX, HTML, Markdown or text" in html
    assert "<table" not in html


async def test_a_row_shows_state_recovered_size_and_owner(
    page: Browser, ada: Someone, bob: Someone, registry: Registry
) -> None:
    document_id = await ada.upload()
    train(registry, document_id, ada.principal)
    theirs = await bob.upload("Another text.", title="Bob's <b>notes</b>")
    registry.people.share(bob.principal, theirs, user="Ada")
    html = await page.see("/")
    assert titles(html) == ["Bob&#39;s &lt;b&gt;notes&lt;/b&gt;", "Harbour"]
    rows = [re.sub(r"<[^>]+>|\s+", " ", row) for row in html.split("<tr>")[2:]]
    assert all(word in rows[0] for word in ("Waiting", "13 B", "Bob"))
    assert all(word in rows[1] for word in ("KM ready", "80 %", f"{len(TEXT)} B", "you"))


async def test_the_list_is_followed_while_something_is_trained(
    page: Browser, ada: Someone, registry: Registry
) -> None:
    document_id = await ada.upload()
    assert 'hx-trigger="every 2s"' in await page.see("/ui/rows")
    train(registry, document_id, ada.principal)
    assert "every 2s" not in await page.see("/ui/rows")


async def test_titles_are_searched_whatever_their_case(page: Browser, ada: Someone) -> None:
    for number, title in enumerate(("Harbour", "100 % wool", "Harvest")):
        await ada.upload(f"Text {number}.", title=title)
    assert titles(await page.see("/ui/rows?q=haR")) == ["Harvest", "Harbour"]
    # No pattern: what is typed is looked for as it is.
    assert titles(await page.see("/ui/rows?q=%25")) == ["100 % wool"]
    assert "No title holds" in await page.see("/?q=_")


async def test_five_hundred_documents_come_in_pages(page: Browser, ada: Someone, registry: Registry) -> None:
    for number in range(60):
        registry.add_document(ada.principal, f"Title {number}", f"Text {number}.")
    began, seen, place = time.perf_counter(), [], "/"
    while True:
        html = await page.see(place)
        seen += titles(html)
        older = re.search(r'<a class="button" href="([^"]+)">Older', html)
        if older is None:
            break
        place = older[1].replace("&amp;", "&")
    assert seen == [f"Title {number}" for number in reversed(range(60))]
    assert time.perf_counter() - began < 5


async def test_a_file_is_taken_in(page: Browser, registry: Registry, ada: Someone) -> None:
    files = {"file": ("lights.html", page_of_the_web([TEXT]))}
    response = await page.do("/ui/documents", files=files)
    assert response.status_code == 202, response.text
    assert response.json()["title"] == "lights"
    assert "lights" in await page.see(response.json()["place"])
    again = await page.do("/ui/documents", files=files)
    assert (again.status_code, again.json()["created"]) == (200, False)


async def test_a_refusal_says_what_to_do(page: Browser) -> None:
    response = await page.do("/ui/documents", files={"file": ("a.bin", b"\x7fELF\x00\x01")})
    assert "PDF" in error_of(response, 415)["message"]
    response = await page.do("/ui/documents", files={"file": ("a.txt", b"a" * 200_000)})
    assert "KM_MAX_FILE_BYTES" in error_of(response, 413)["message"]


async def test_the_sample_brings_its_questions(page: Browser, ada: Someone, registry: Registry) -> None:
    response = await page.do("/ui/sample")
    assert response.status_code == 204
    html = await page.see(response.headers["hx-redirect"])
    assert sample().title in html
    for question in shown_questions():
        assert question in html
    assert len(shown_questions()) == 5
