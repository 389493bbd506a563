"""Commands of `km` about who may do what: sharing, users, groups, keys, the audit log."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from server.cli_shared import DocumentId, Json, connected, fail, print_json, print_table

Who = Annotated[str, typer.Argument(help="A user's name or id; a group's with --group.")]
AsGroup = Annotated[bool, typer.Option("--group", help="WHO is a group.")]
GroupName = Annotated[str, typer.Argument(help="The group's name or id.")]
UserName = Annotated[str, typer.Argument(help="The user's name or id.")]

users = typer.Typer(help="List users; `add` one. For administrators.")
groups = typer.Typer(help="List groups; `add`, `rm`, `members`, `join`, `leave`.")
keys = typer.Typer(help="List API keys; `add`, `revoke`.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for name, command in (("share", share), ("unshare", unshare), ("whoami", whoami), ("audit", audit)):
        app.command(name)(command)
    for name, group in (("users", users), ("groups", groups), ("keys", keys)):
        app.add_typer(group, name=name)


# --- sharing -----------------------------------------------------------------------------------------------


def share(
    document: DocumentId,
    who: Annotated[str | None, typer.Argument(help="A user's name or id; without, who holds what.")] = None,
    group: AsGroup = False,
    role: Annotated[str, typer.Option(help="reader: read and ask; owner: everything.")] = "reader",
    as_json: Json = False,
) -> None:
    """Share a document with a user or a group, or list with whom it is shared."""
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


def unshare(document: DocumentId, who: Who, group: AsGroup = False) -> None:
    """Share a document with a user or a group no longer; their running streams are cut within 2 s."""
    prefix = "grp_" if group or who.startswith("grp_") else "usr_"
    with connected() as client:
        held = [one for one in client.grants(document) if one["principal_id"].startswith(prefix)]
        found = [one["principal_id"] for one in held if who in (one["name"], one["principal_id"])]
        if not found:
            kind = "group" if prefix == "grp_" else "user"
            fail(f"{document} is not shared with the {kind} {who}; see `km share {document}`.", code=1)
        client.unshare(document, found[0])


# --- users -------------------------------------------------------------------------------------------------


def whoami(as_json: Json = False) -> None:
    """Show the user behind KM_API_KEY, and their groups."""
    with connected() as client:
        found = client.me()
    if as_json:
        print_json(found)
        return
    user = found["user"]
    typer.echo(f"{user['id']}  {user['name']}{'  administrator' if user['is_admin'] else ''}")
    for group in found["groups"]:
        typer.echo(f"{group['id']}  {group['name']}")


@users.callback(invoke_without_command=True)
def list_users(context: typer.Context, as_json: Json = False) -> None:
    """List users, by name."""
    if context.invoked_subcommand is None:
        with connected() as client:
            _shown(
                client.users(), as_json, id="id", name="name", administrator="is_admin", since="created_at"
            )


@users.command("add")
def add_user(
    name: Annotated[str, typer.Argument(help="The new user's name.")],
    admin: Annotated[bool, typer.Option("--admin", help="Manages users, groups and keys.")] = False,
    as_json: Json = False,
) -> None:
    """Create a user; prints their first API key, which is shown this once."""
    with connected() as client:
        created = client.create_user(name, is_admin=admin)
    if as_json:
        print_json(created)
    else:
        typer.echo(f"{created['user']['id']}  {created['user']['name']}\n{created['api_key']}")


@users.command("rm")
def remove_user(user: Annotated[str, typer.Argument(help="The user's id, usr_…")]) -> None:
    """Delete a user with every document that they uploaded; prints the receipt."""
    with connected() as client:
        print_json(client.delete_user(user))


# --- groups ------------------------------------------------------------------------------------------------


@groups.callback(invoke_without_command=True)
def list_groups(context: typer.Context, as_json: Json = False) -> None:
    """List the groups that you see, by name."""
    if context.invoked_subcommand is None:
        with connected() as client:
            _shown(client.groups(), as_json, id="id", name="name", since="created_at")


@groups.command("add")
def add_group(
    name: Annotated[str, typer.Argument(help="The new group's name.")], as_json: Json = False
) -> None:
    """Create a group."""
    with connected() as client:
        created = client.create_group(name)
    if as_json:
        print_json(created)
    else:
        typer.echo(f"{created['id']}  {created['name']}")


@groups.command("rm")
def remove_group(group: GroupName) -> None:
    """Remove a group, with all that was shared with it."""
    with connected() as client:
        client.delete_group(_group_id(client.groups(), group))


@groups.command("members")
def members(group: GroupName, as_json: Json = False) -> None:
    """List a group's members."""
    with connected() as client:
        _shown(client.members(_group_id(client.groups(), group)), as_json, id="id", name="name")


@groups.command("join")
def join(group: GroupName, user: UserName) -> None:
    """Put a user into a group."""
    with connected() as client:
        client.add_member(_group_id(client.groups(), group), user)


@groups.command("leave")
def leave(group: GroupName, user: UserName) -> None:
    """Take a user out of a group."""
    with connected() as client:
        group_id = _group_id(client.groups(), group)
        found = [one["id"] for one in client.members(group_id) if user in (one["id"], one["name"])]
        if not found:
            fail(f"{user} is not in {group}; see `km groups members`.", code=1)
        client.remove_member(group_id, found[0])


# --- keys --------------------------------------------------------------------------------------------------


@keys.callback(invoke_without_command=True)
def list_keys(
    context: typer.Context,
    user: Annotated[str | None, typer.Option(help="Whose, by name or id; for administrators.")] = None,
    as_json: Json = False,
) -> None:
    """List API keys, also those that were revoked or have expired."""
    if context.invoked_subcommand is None:
        columns = {"id": "id", "user": "user_id", "name": "name", "since": "created_at"}
        ends = {"expires": "expires_at", "revoked": "revoked_at", "last used": "last_used_at"}
        with connected() as client:
            _shown(client.keys(user), as_json, **columns, **ends)


@keys.command("add")
def add_key(
    name: Annotated[str, typer.Argument(help="A name to tell it by.")],
    user: Annotated[str | None, typer.Option(help="Whose, by name or id; for administrators.")] = None,
    days: Annotated[float | None, typer.Option(help="Days until it expires; never without.", min=0.0)] = None,
    as_json: Json = False,
) -> None:
    """Make an API key; prints its secret, which is shown this once."""
    expires_at = None if days is None else (datetime.now(UTC) + timedelta(days=days)).isoformat()
    with connected() as client:
        created = client.create_key(name, user=user, expires_at=expires_at)
    if as_json:
        print_json(created)
    else:
        typer.echo(f"{created['key']['id']}  {created['key']['name']}\n{created['api_key']}")


@keys.command("revoke")
def revoke_key(key: Annotated[str, typer.Argument(help="The key's id, key_…")]) -> None:
    """End an API key for good, from the next request on."""
    with connected() as client:
        client.revoke_key(key)


# --- the audit log -----------------------------------------------------------------------------------------


def audit(
    target: Annotated[str | None, typer.Option(help="Only what concerns this id.")] = None,
    actor: Annotated[str | None, typer.Option(help="Only what this user did: usr_…")] = None,
    limit: Annotated[int, typer.Option(help="Most entries.", min=1, max=1000)] = 50,
    as_json: Json = False,
) -> None:
    """Show who did or tried what, newest first."""
    with connected() as client:
        found = client.audit(target=target, actor=actor, limit=limit)["entries"]
    columns = {"when": "at", "who": "actor_id", "what": "action", "on": "target_id", "and": "other_id"}
    _shown(found, as_json, **columns, outcome="outcome")


def _group_id(found: list[dict[str, Any]], wanted: str) -> str:
    matching = [str(group["id"]) for group in found if wanted in (group["id"], group["name"])]
    if not matching:
        fail(f"There is no group {wanted} that you see; see `km groups`.", code=1)
    return matching[0]


def _shown(found: list[dict[str, Any]], as_json: bool, /, **columns: str) -> None:
    if as_json:
        print_json(found)
    else:
        print_table(found, **columns)
