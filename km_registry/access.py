"""Who may do what. These are the only rules; everything else asks them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from km_registry.types import Action, Document, Grant, Principal, Role

#: Every role may read and ask: lists show whatever a principal holds any role on.
ALLOWED: Mapping[Role, frozenset[Action]] = {
    Role.OWNER: frozenset(Action),
    Role.READER: frozenset({Action.READ, Action.ASK}),
}


def may(principal: Principal, action: Action, document: Document, grants: Collection[Grant]) -> bool:
    """Whether the principal may do this with the document, by these grants of theirs.

    `grants` are those that the principal holds now, as a user or as a member of a group: `store.access` looks
    them up. An administrator runs the server; that gives no right to read what others keep in it.
    """
    return any(
        action in ALLOWED[grant.role]
        for grant in grants
        if grant.document_id == document.id and _held_by(principal, grant)
    )


def may_administer(principal: Principal) -> bool:
    """Whether the principal manages users and groups, sees the whole audit log, and what is measured."""
    return principal.is_admin


def may_manage_keys(principal: Principal, user_id: str) -> bool:
    """Whether the principal may list, make and revoke this user's keys."""
    return principal.is_admin or principal.user_id == user_id


def strongest(roles: Collection[Role]) -> Role | None:
    """The role that counts where several are held; None of none."""
    return next((role for role in Role if role in roles), None)


def _held_by(principal: Principal, grant: Grant) -> bool:
    # Membership in the group is what the look-up says; somebody else's own grant is a mistake of ours.
    return grant.principal_id == principal.user_id or grant.principal_id.startswith("grp_")
