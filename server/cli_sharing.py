"""Commands of `km` that share documents."""

from __future__ import annotations

from typing import Annotated

import typer

from server.cli_shared import DocumentId, Json, connected, fail, print_json, print_table, said

Who = Annotated[str, typer.Argument(help="A user's name or id; a group's with --group.")]
AsGroup = Annotated[bool, typer.Option("--group", help="WHO is a group.")]


def share(
    document: DocumentId,
    who: Annotated[str | None, typer.Argument(help="A user's name or id; without, who holds what.")] = None,
    group: AsGroup = False,
    role: Annotated[str, typer.Option(help="reader: read and ask; owner: everything.")] = "reader",
    as_json: Json = False,
) -> None:
    """Share a document, or list with whom it is.

    With a user or a group.
    """
    with connected() as client:
        if who is None:
            found = client.grants(document)
        else:
            named: dict[str, str] = {"group" if group or who.startswith("grp_") else "user": who}
            found = [client.share(document, role=role, **named)]
    if as_json:
        print_json(found if who is None else found[0])
        return
    print_table(found, id="principal_id", name="name", role="role", since="created_at")


def unshare(document: DocumentId, who: Who, group: AsGroup = False, as_json: Json = False) -> None:
    """Share a document no longer.

    What streams to the user or the group is cut within 2 s.
    """
    prefix = "grp_" if group or who.startswith("grp_") else "usr_"
    with connected() as client:
        held = [one for one in client.grants(document) if one["principal_id"].startswith(prefix)]
        found = [one["principal_id"] for one in held if who in (one["name"], one["principal_id"])]
        if not found:
            kind = "group" if prefix == "grp_" else "user"
            fail(f"{document} is not shared with the {kind} {who}; see `km share {document}`.", code=1)
        client.unshare(document, found[0])
    said({"document_id": document, "principal_id": found[0]}, as_json)
