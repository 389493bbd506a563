"""Commands of `km` about users, groups, keys and the audit log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from server.cli_shared import Json, connected, fail, print_json, print_table, said

GroupName = Annotated[str, typer.Argument(help="The group's name or id.")]
UserName = Annotated[str, typer.Argument(help="The user's name or id.")]

users = typer.Typer(help="List users; `add`, `rm`. For administrators.")
groups = typer.Typer(help="List groups; `add`, `rm`, `join`, …")
keys = typer.Typer(help="List API keys; `add`, `revoke`.")


# --- users -------------------------------------------------------------------------------------------------


def whoami(as_json: Json = False) -> None:
    """Show the user behind KM_API_KEY.

    And their groups.
    """
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
def remove_user(
    user: Annotated[str, typer.Argument(help="The user's id, usr_…")], as_json: Json = False
) -> None:
    """Delete a user with every document that they uploaded; prints the receipt."""
    del as_json  # it is JSON anyway
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
def remove_group(group: GroupName, as_json: Json = False) -> None:
    """Remove a group, with all that was shared with it."""
    with connected() as client:
        group_id = _group_id(client.groups(), group)
        client.delete_group(group_id)
    said({"group_id": group_id}, as_json)


@groups.command("members")
def members(group: GroupName, as_json: Json = False) -> None:
    """List a group's members."""
    with connected() as client:
        _shown(client.members(_group_id(client.groups(), group)), as_json, id="id", name="name")


@groups.command("join")
def join(group: GroupName, user: UserName, as_json: Json = False) -> None:
    """Put a user into a group."""
    with connected() as client:
        group_id = _group_id(client.groups(), group)
        member = client.add_member(group_id, user)
    said({"group_id": group_id, "user": member}, as_json)


@groups.command("leave")
def leave(group: GroupName, user: UserName, as_json: Json = False) -> None:
    """Take a user out of a group."""
    with connected() as client:
        group_id = _group_id(client.groups(), group)
        found = [one["id"] for one in client.members(group_id) if user in (one["id"], one["name"])]
        if not found:
            fail(f"{user} is not in {group}; see `km groups members`.", code=1)
        client.remove_member(group_id, found[0])
    said({"group_id": group_id, "user_id": found[0]}, as_json)


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
def revoke_key(
    key: Annotated[str, typer.Argument(help="The key's id, key_…")], as_json: Json = False
) -> None:
    """End an API key for good, from the next request on."""
    with connected() as client:
        ended = client.revoke_key(key)
    said(ended, as_json)


# --- the audit log -----------------------------------------------------------------------------------------


def audit(
    target: Annotated[str | None, typer.Option(help="Only what concerns this id.")] = None,
    actor: Annotated[str | None, typer.Option(help="Only what this user did: usr_…")] = None,
    limit: Annotated[int, typer.Option(help="Most entries.", min=1, max=1000)] = 50,
    as_json: Json = False,
) -> None:
    """Show who did or tried what.

    Newest first.
    """
    with connected() as client:
        found = client.audit(target=target, actor=actor, limit=limit)["entries"]
    columns = {"when": "at", "who": "actor_id", "what": "action", "on": "target_id", "and": "other_id"}
    _shown(found, as_json, **columns, outcome="outcome")


def _group_id(found: Sequence[Mapping[str, Any]], wanted: str) -> str:
    matching = [str(group["id"]) for group in found if wanted in (group["id"], group["name"])]
    if not matching:
        fail(f"There is no group {wanted} that you see; see `km groups`.", code=1)
    return matching[0]


def _shown(found: Sequence[Mapping[str, Any]], as_json: bool, /, **columns: str) -> None:
    if as_json:
        print_json(found)
    else:
        print_table(found, **columns)
