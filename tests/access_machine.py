"""Several users at work on shared documents, against a model of who may do what.

A Hypothesis state machine: it creates, shares, revokes, asks, lists, streams, renames and deletes over HTTP,
and after each request compares what came with what the model says. A refusal must look exactly as if there
were no such thing, and the owner must still succeed after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from httpx import AsyncClient, Response
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    precondition,
    rule,
)

from km_registry.types import Principal
from tests.access_site import Site, unvarying
from tests.unit.server.conftest import train

USERS = ("ada", "bob", "cyd")
EVERYBODY = (*USERS, "root")
UNKNOWN = "doc_aaaaaaaaaaaaaaaaaaaa"
ROLES = ("reader", "owner")
_MOST_DOCUMENTS = 4

users = st.sampled_from(EVERYBODY)
ordinary = st.sampled_from(USERS)
#: Whoever uploaded the document that is drawn with it.
OWNER = st.just("the owner")


class AccessMachine(RuleBasedStateMachine):
    """The model: the roles of users and of the group on each document, and who is in the group."""

    site: ClassVar[Site]
    documents = Bundle("documents")

    @initialize(target=documents)
    def people(self) -> MultipleResults[str]:
        """Users of this example's own, and a document of two of them."""
        registry, number = self.site.place.registry, next(self.site.numbers)
        self.names = {who: f"{who} {number}" for who in EVERYBODY}
        self.ids: dict[str, str] = {}
        self.clients: dict[str, AsyncClient] = {}
        self.keys: dict[str, str] = {}
        for who, name in self.names.items():
            user, key = registry.create_user(name, is_admin=who == "root")
            self.ids[who], self.keys[who] = user.id, key
            self.clients[who] = self.site.client(key)
        root = Principal(self.ids["root"], is_admin=True)
        self.group = registry.people.create_group(root, f"crew {number}").id
        self.members: set[str] = set()
        self.uploader: dict[str, str] = {}
        self.titles: dict[str, str] = {}
        self.kms: dict[str, str] = {}
        self.roles: dict[str, dict[str, str]] = {}
        self.of_group: dict[str, str] = {}
        return multiple(self._created("ada"), self._created("bob"))

    @precondition(lambda self: len(self.roles) < _MOST_DOCUMENTS)
    @rule(target=documents, who=users)
    def create(self, who: str) -> str:
        """Upload a document, which is trained at once."""
        return self._created(who)

    def _created(self, who: str) -> str:
        number = next(self.site.numbers)
        sent = {"title": f"Harbour {number}", "text": f"The harbour of Ostrell opens at {number}."}
        response = self._send(who, "POST", "/documents", json=sent)
        self._expect("create", response, 202)
        document_id: str = response.json()["document"]["id"]
        self.uploader[document_id] = who
        self.titles[document_id] = sent["title"]
        self.roles[document_id] = {who: "owner"}
        self._train(document_id)
        return document_id

    @rule(document_id=documents, who=users | OWNER, whom=users, role=st.sampled_from(ROLES))
    def share(self, document_id: str, who: str, whom: str, role: str) -> None:
        """Give a user a role."""
        who = self._who(who, document_id)
        sent = {"user": self.names[whom], "role": role}
        response = self._send(who, "POST", f"/documents/{document_id}/grants", json=sent)
        if self._role(document_id, who) != "owner":
            self._refused("share", response, who, document_id)
            return
        held = self.roles[document_id]
        if whom == who:
            self._expect("share", response, 422)
        elif whom == self.uploader[document_id] and role != "owner":
            self._expect("share", response, 409)
        else:
            self._expect("share", response, 200 if whom in held else 201)
            held[whom] = role

    @rule(document_id=documents, who=users | OWNER, role=st.sampled_from(ROLES))
    def share_with_the_group(self, document_id: str, who: str, role: str) -> None:
        """Give the group a role."""
        who = self._who(who, document_id)
        sent = {"group": self.group, "role": role}
        response = self._send(who, "POST", f"/documents/{document_id}/grants", json=sent)
        if self._role(document_id, who) != "owner":
            self._refused("share", response, who, document_id)
        else:
            self._expect("share", response, 200 if document_id in self.of_group else 201)
            self.of_group[document_id] = role

    @rule(document_id=documents, who=users | OWNER, whom=users)
    def revoke(self, document_id: str, who: str, whom: str) -> None:
        """Take a user's role."""
        who = self._who(who, document_id)
        response = self._send(who, "DELETE", f"/documents/{document_id}/grants/{self.ids[whom]}")
        if self._role(document_id, who) != "owner":
            self._refused("revoke", response, who, document_id)
        elif whom == self.uploader[document_id]:
            self._expect("revoke", response, 409)
        else:
            self._expect("revoke", response, 204 if whom in self.roles[document_id] else 404)
            self.roles[document_id].pop(whom, None)

    @rule(document_id=documents, who=users)
    def revoke_from_the_group(self, document_id: str, who: str) -> None:
        """Take the group's role."""
        response = self._send(who, "DELETE", f"/documents/{document_id}/grants/{self.group}")
        if self._role(document_id, who) != "owner":
            self._refused("revoke", response, who, document_id)
        else:
            self._expect("revoke", response, 204 if document_id in self.of_group else 404)
            self.of_group.pop(document_id, None)

    @rule(who=ordinary, whom=ordinary)
    def join(self, who: str, whom: str) -> None:
        """Users do not change groups; the administrator does."""
        path, sent = f"/groups/{self.group}/members", {"user": self.names[whom]}
        self._expect("group", self._send(who, "POST", path, json=sent), 403)
        response = self._send("root", "POST", path, json=sent)
        self._expect("group", response, 200 if whom in self.members else 201)
        self.members.add(whom)

    @rule(whom=ordinary)
    def leave(self, whom: str) -> None:
        """The administrator takes a user out of the group."""
        response = self._send("root", "DELETE", f"/groups/{self.group}/members/{self.ids[whom]}")
        self._expect("group", response, 204 if whom in self.members else 404)
        self.members.discard(whom)

    @rule(who=ordinary)
    def change_keys(self, who: str) -> None:
        """A new key works; the old one, once revoked, does not."""
        made = self._send(who, "POST", "/keys", json={"name": f"key {next(self.site.numbers)}"})
        self._expect("key", made, 201)
        old = self._send(who, "GET", "/users/me").json()["key_id"]
        before, self.clients[who] = self.clients[who], self.site.client(made.json()["api_key"])
        self._expect("key", self._send(who, "DELETE", f"/keys/{old}"), 200)
        self._expect("key", self.site.run(before.get("/documents")), 401)
        self.site.run(before.aclose())

    @rule(document_id=documents, who=users, mode=st.sampled_from(["auto", "km", "icl", "base"]))
    def ask(self, document_id: str, who: str, mode: str) -> None:
        """Ask."""
        asked = {"document_id": document_id, "question": "When?", "mode": mode, "max_tokens": 4}
        self._readable("ask", self._send(who, "POST", "/answer", json=asked), who, document_id)

    @rule(document_id=documents, who=users)
    def stream(self, document_id: str, who: str) -> None:
        """Ask for a stream, and follow the training."""
        asked = {"document_id": document_id, "question": "When?", "stream": True, "max_tokens": 4}
        response = self._send(who, "POST", "/answer", json=asked)
        self._readable("stream", response, who, document_id)
        if response.status_code == 200:
            assert "event: answer" in response.text, response.text
        response = self._send(who, "GET", f"/documents/{document_id}/events")
        self._readable("stream", response, who, document_id)
        if response.status_code == 200:
            assert self.kms[document_id] in response.text

    @rule(document_id=documents, who=users, by_km=st.booleans())
    def complete(self, document_id: str, who: str, by_km: bool) -> None:
        """Ask by OpenAI's routes, the document or its KM."""
        model = self.kms[document_id] if by_km else document_id
        sent = {"model": model, "prompt": "It opens", "max_tokens": 2}
        self._readable("complete", self._send(who, "POST", "/v1/completions", json=sent), who, document_id)

    @rule(document_id=documents, who=users)
    def look(self, document_id: str, who: str) -> None:
        """Look at it: the title and the role are what the model says."""
        response = self._send(who, "GET", f"/documents/{document_id}")
        self._readable("look", response, who, document_id)
        if response.status_code == 200:
            found = response.json()
            assert (found["document"]["title"], found["role"]) == (
                self.titles[document_id],
                self._role(document_id, who),
            )

    @rule(document_id=documents, who=users | OWNER)
    def rename(self, document_id: str, who: str) -> None:
        """Give it another title, by a new version."""
        who = self._who(who, document_id)
        number = next(self.site.numbers)
        sent = {"title": f"Renamed {number}", "text": f"The harbour of Ostrell opens at {number}."}
        response = self._send(who, "PUT", f"/documents/{document_id}", json=sent)
        if self._role(document_id, who) != "owner":
            self._refused("rename", response, who, document_id)
            return
        self._expect("rename", response, 202)
        self.titles[document_id] = sent["title"]
        self._train(document_id)
        self.site.run(self._settled(document_id))

    @rule(document_id=consumes(documents), who=users)
    def delete(self, document_id: str, who: str) -> None:
        """Delete it, as the owner in the end: from then on it is there for nobody."""
        if self._role(document_id, who) != "owner":
            self._refused("delete", self._send(who, "DELETE", f"/documents/{document_id}"), who, document_id)
            who = self.uploader[document_id]
        self._expect("delete", self._send(who, "DELETE", f"/documents/{document_id}"), 200)
        for part in (self.roles, self.of_group, self.uploader, self.titles):
            part.pop(document_id, None)
        for whoever in EVERYBODY:
            response = self._send(whoever, "GET", f"/documents/{document_id}")
            self._refused("look", response, whoever, document_id)

    @rule()
    def look_at_lists(self) -> None:
        """Every user's list is what the model says, roles included."""
        for who in EVERYBODY:
            listed = self._send(who, "GET", "/documents").json()["documents"]
            expected = {one: role for one in self.roles if (role := self._role(one, who)) is not None}
            assert {one["id"]: one["role"] for one in listed} == expected, who
            self.site.checks["list"] += 1

    def teardown(self) -> None:
        """Close the clients."""
        for client in getattr(self, "clients", {}).values():
            self.site.run(client.aclose())

    def _who(self, who: str, document_id: str) -> str:
        return self.uploader[document_id] if who == "the owner" else who

    def _role(self, document_id: str, who: str) -> str | None:
        held = [self.roles.get(document_id, {}).get(who)]
        if who in self.members:
            held.append(self.of_group.get(document_id))
        return next((role for role in ("owner", "reader") if role in held), None)

    def _readable(self, what: str, response: Response, who: str, document_id: str) -> None:
        if self._role(document_id, who) is None:
            self._refused(what, response, who, document_id)
        else:
            self._expect(what, response, 200)

    def _refused(self, what: str, response: Response, who: str, document_id: str) -> None:
        """As if there were no such thing, to the letter; and the owner succeeds after it."""
        self._expect(what, response, 404)
        unknown = self._send(who, "GET", f"/documents/{UNKNOWN}")
        assert (response.content, unvarying(response)) == (unknown.content, unvarying(unknown)), what
        if document_id in self.uploader:
            owned = self._send(self.uploader[document_id], "GET", f"/documents/{document_id}")
            self._expect("owner", owned, 200)

    def _expect(self, what: str, response: Response, status: int) -> None:
        self.site.checks[what] += 1
        assert response.status_code == status, (what, response.status_code, status, response.text)

    def _send(self, who: str, method: str, path: str, **sent: Any) -> Response:
        response: Response = self.site.run(self.clients[who].request(method, path, **sent))
        return response

    def _train(self, document_id: str) -> None:
        owner = Principal(self.ids[self.uploader[document_id]])
        self.kms[document_id] = train(self.site.place.registry, document_id, owner).id

    async def _settled(self, document_id: str) -> None:
        self.site.place.state.replacements.begin(document_id)
        await self.site.place.state.replacements.settled()


@contextmanager
def machine_on(data_dir: Path) -> Iterator[type[AccessMachine]]:
    """The machine on an application of its own."""
    site = Site(data_dir)
    machine = type("AccessMachineHere", (AccessMachine,), {"site": site})
    try:
        yield machine
    finally:
        site.close()
