"""What goes over HTTP about sharing, groups, keys and the audit log."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, Field

from km_registry.types import Role
from server.schemas import DOCUMENT_ID, Input, Output, UserOut

_USER_ID = "usr_2b7d90"
_GROUP_ID = "grp_5k1w8c"
_KEY_ID = "key_8d2m4p"


class GrantIn(Input):
    """Whom to share with: a user or a group, and in which role."""

    user: str | None = Field(None, max_length=300, description="id or exact name", examples=["ada"])
    group: str | None = Field(None, max_length=300, description="id or exact name, instead of a user")
    role: Role = Field(
        Role.READER, description="reader: read and ask; owner: everything", examples=["reader"]
    )


class GrantOut(Output):
    """A role that a user or a group holds on a document."""

    principal_id: str = Field(description="usr_… or grp_…", examples=[_USER_ID])
    name: str = Field(description="of the user or group", examples=["ada"])
    role: Role
    created_at: datetime


class GrantList(BaseModel):
    """Who holds which role on a document, in the order in which they got it."""

    grants: list[GrantOut]


class UserList(BaseModel):
    """Users by name."""

    users: list[UserOut]
    next_after: str | None = Field(
        None, description="give this as `after` to get the next ones; null at the end"
    )


class GroupIn(Input):
    """A group to create."""

    name: str = Field(min_length=1, max_length=200, examples=["harbour office"])


class GroupOut(Output):
    """Users that documents are shared with together."""

    id: str = Field(examples=[_GROUP_ID])
    name: str = Field(examples=["harbour office"])
    created_at: datetime


class GroupList(BaseModel):
    """Groups by name."""

    groups: list[GroupOut]


class MemberIn(Input):
    """A user to put into a group."""

    user: str = Field(min_length=1, max_length=300, description="id or exact name", examples=["ada"])


class MemberList(BaseModel):
    """A group's members, by name."""

    members: list[UserOut]


class Me(BaseModel):
    """Who you are to this server."""

    user: UserOut
    groups: list[GroupOut] = Field(description="that you are in; all of them for an administrator")
    key_id: str | None = Field(None, description="of the key that you call with", examples=[_KEY_ID])


class KeyIn(Input):
    """A key to make."""

    name: str = Field(min_length=1, max_length=200, description="to tell it by", examples=["laptop"])
    user: str | None = Field(
        None,
        max_length=300,
        description="id or exact name of whose key it is, for administrators; else yours",
    )
    expires_at: datetime | None = Field(
        None,
        description="when it ends, UTC unless it says otherwise; never without",
        examples=["2027-01-31T12:00:00Z"],
    )


class KeyOut(Output):
    """An API key, without its secret."""

    id: str = Field(examples=[_KEY_ID])
    user_id: str = Field(examples=[_USER_ID])
    name: str = Field(examples=["laptop"])
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = Field(None, description="to a minute")


class KeyCreated(BaseModel):
    """A new key with its secret."""

    key: KeyOut
    api_key: str = Field(description="shown this once; only its digest is kept", examples=["km_…"])


class KeyList(BaseModel):
    """Keys, oldest first, also those that were revoked or have expired."""

    keys: list[KeyOut]


class AuditOut(Output):
    """Something that was done or tried. Ids only: no text, no title, no question."""

    id: int
    at: datetime
    actor_id: str | None = Field(description="who; null is the server itself", examples=[_USER_ID])
    key_id: str | None = Field(description="the key they called with", examples=[_KEY_ID])
    action: str = Field(examples=["document.ask"])
    target_id: str | None = Field(examples=[DOCUMENT_ID])
    other_id: str | None = Field(description="the second one concerned, as in a grant", examples=[_GROUP_ID])
    outcome: str = Field(description="done or refused", examples=["done"])


class AuditList(BaseModel):
    """What was done or tried, newest first."""

    entries: list[AuditOut]
    next_before: int | None = Field(
        None, description="give this as `before` to get the older ones; null at the end"
    )
