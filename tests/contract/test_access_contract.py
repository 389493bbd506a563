"""Who may do what, in every registry, on whichever database."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from km_registry.config import RegistrySettings
from km_registry.errors import ConflictError, InvalidValueError, NotAllowedError, NotFoundError
from km_registry.registry import Registry
from km_registry.types import KM, Action, Claim, Document, Job, Principal, Role
from tests.contract.support import FIRST, SECOND, files_below, publish

UNKNOWN = "doc_aaaaaaaaaaaaaaaaaaaa"


@pytest.fixture
def admin(registry: Registry) -> Principal:
    return Principal(registry.create_user("Root", is_admin=True)[0].id, is_admin=True)


@pytest.fixture
def harbour(registry: Registry, admin: Principal, stranger: Principal) -> str:
    """A group that the stranger is in."""
    group = registry.people.create_group(admin, "Harbour")
    registry.people.add_member(admin, group.id, stranger.user_id)
    return group.id


def allowed(registry: Registry, principal: Principal, document_id: str) -> set[Action]:
    """Which actions the registry lets the principal do."""

    def may(action: Action) -> bool:
        try:
            registry.get_document(principal, document_id, action)
        except NotFoundError:
            return False
        return True

    return {action for action in Action if may(action)}


READING = {Action.READ, Action.ASK}


class TestGrants:
    def test_who_uploads_is_the_owner(
        self, registry: Registry, owner: Principal, kaldvik: tuple[Document, Job]
    ) -> None:
        document, _ = kaldvik
        assert allowed(registry, owner, document.id) == set(Action)
        (grant,) = registry.people.grants(owner, document.id)
        assert (grant.document_id, grant.principal_id, grant.name, grant.role) == (
            document.id,
            owner.user_id,
            "Ada",
            Role.OWNER,
        )

    @pytest.mark.parametrize(("role", "actions"), [(Role.READER, READING), (Role.OWNER, set(Action))])
    def test_a_user_may_what_their_role_says(
        self,
        registry: Registry,
        owner: Principal,
        stranger: Principal,
        kaldvik: tuple[Document, Job],
        role: Role,
        actions: set[Action],
    ) -> None:
        document, _ = kaldvik
        assert allowed(registry, stranger, document.id) == set()
        grant, created = registry.people.share(owner, document.id, user=stranger.user_id, role=role)
        assert (grant.principal_id, grant.role, created) == (stranger.user_id, role, True)
        assert allowed(registry, stranger, document.id) == actions
        registry.people.unshare(owner, document.id, stranger.user_id)
        assert allowed(registry, stranger, document.id) == set()
        assert allowed(registry, owner, document.id) == set(Action)

    def test_a_role_takes_the_place_of_another(
        self, registry: Registry, owner: Principal, stranger: Principal, kaldvik: tuple[Document, Job]
    ) -> None:
        document, _ = kaldvik
        registry.people.share(owner, document.id, user="Bob", role=Role.OWNER)
        _, created = registry.people.share(owner, document.id, user="Bob", role=Role.READER)
        assert not created
        assert allowed(registry, stranger, document.id) == READING
        assert len(registry.people.grants(owner, document.id)) == 2

    def test_members_of_a_group_may_what_its_role_says(
        self,
        registry: Registry,
        owner: Principal,
        stranger: Principal,
        admin: Principal,
        harbour: str,
        kaldvik: tuple[Document, Job],
    ) -> None:
        document, _ = kaldvik
        registry.people.share(owner, document.id, group="Harbour", role=Role.OWNER)
        assert allowed(registry, stranger, document.id) == set(Action)
        assert allowed(registry, admin, document.id) == set()
        registry.people.remove_member(admin, harbour, stranger.user_id)
        assert allowed(registry, stranger, document.id) == set()
        registry.people.add_member(admin, harbour, "Bob")
        assert allowed(registry, stranger, document.id) == set(Action)
        registry.people.delete_group(admin, harbour)
        assert allowed(registry, stranger, document.id) == set()
        assert [grant.principal_id for grant in registry.people.grants(owner, document.id)] == [owner.user_id]

    def test_of_two_roles_the_stronger_counts(
        self,
        registry: Registry,
        owner: Principal,
        stranger: Principal,
        harbour: str,
        kaldvik: tuple[Document, Job],
    ) -> None:
        document, _ = kaldvik
        registry.people.share(owner, document.id, user="Bob", role=Role.READER)
        registry.people.share(owner, document.id, group=harbour, role=Role.OWNER)
        assert allowed(registry, stranger, document.id) == set(Action)
        assert registry.people.roles(stranger, [document.id, UNKNOWN]) == {document.id: Role.OWNER}

    def test_lists_show_what_may_be_read(
        self,
        registry: Registry,
        owner: Principal,
        stranger: Principal,
        admin: Principal,
        harbour: str,
        trained: tuple[Document, KM],
    ) -> None:
        document, km = trained
        own, _, _ = registry.add_document(stranger, "Own", SECOND)
        registry.people.share(owner, document.id, user="Bob")
        registry.people.share(owner, document.id, group=harbour)
        assert registry.list_documents(stranger) == [own, document]
        assert registry.list_documents(stranger, limit=1, before=own.id) == [document]
        assert registry.kms_of(stranger) == [km]
        assert registry.list_documents(admin) == []
        assert registry.kms_of(admin) == []
        assert registry.people.roles(stranger, [own.id, document.id]) == {
            own.id: Role.OWNER,
            document.id: Role.READER,
        }
        registry.people.unshare(owner, document.id, stranger.user_id)
        assert registry.list_documents(stranger) == [own, document]
        registry.people.unshare(owner, document.id, harbour)
        assert registry.list_documents(stranger) == [own]
        with pytest.raises(NotFoundError):
            registry.list_documents(stranger, before=document.id)

    def test_readers_and_strangers_do_not_share(
        self, registry: Registry, owner: Principal, stranger: Principal, kaldvik: tuple[Document, Job]
    ) -> None:
        document, _ = kaldvik
        people = registry.people
        for _ in ("stranger", "reader"):
            for call in (
                lambda: people.grants(stranger, document.id),
                lambda: people.share(stranger, document.id, user="Ada", role=Role.READER),
                lambda: people.unshare(stranger, document.id, owner.user_id),
            ):
                with pytest.raises(NotFoundError):
                    call()
            people.share(owner, document.id, user="Bob")
        assert allowed(registry, owner, document.id) == set(Action)

    def test_another_owner_may_all_but_push_out_who_uploaded_it(
        self, registry: Registry, owner: Principal, stranger: Principal, kaldvik: tuple[Document, Job]
    ) -> None:
        document, _ = kaldvik
        registry.people.share(owner, document.id, user="Bob", role=Role.OWNER)
        with pytest.raises(ConflictError, match="stays its owner"):
            registry.people.unshare(stranger, document.id, owner.user_id)
        with pytest.raises(ConflictError, match="stays its owner"):
            registry.people.share(stranger, document.id, user="Ada", role=Role.READER)
        registry.people.share(stranger, document.id, user="Ada", role=Role.OWNER)
        registry.update_document(stranger, document.id, SECOND)
        registry.tombstone(stranger, document.id)
        registry.complete_deletion(document.id, registry.purge(document.id))
        assert registry.receipt(stranger, document.id) == registry.receipt(owner, document.id)

    def test_the_last_owner_stays(
        self, registry: Registry, owner: Principal, kaldvik: tuple[Document, Job]
    ) -> None:
        with pytest.raises(ConflictError, match="stays its owner"):
            registry.people.unshare(owner, kaldvik[0].id, owner.user_id)

    @pytest.mark.parametrize(
        ("wanted", "param", "said"),
        [
            ({"user": "Eve"}, "user", "no user 'Eve'"),
            ({"group": "Eve"}, "group", "no group 'Eve'"),
            ({"user": "Ada"}, "user", "yourself"),
            ({}, "user", "either a user or a group"),
            ({"user": "Bob", "group": "Harbour"}, "user", "either a user or a group"),
        ],
    )
    def test_what_cannot_be_shared_with_is_named(
        self,
        registry: Registry,
        owner: Principal,
        kaldvik: tuple[Document, Job],
        wanted: dict[str, str],
        param: str,
        said: str,
    ) -> None:
        with pytest.raises(InvalidValueError, match=said) as raised:
            registry.people.share(owner, kaldvik[0].id, **wanted)
        assert raised.value.param == param
        assert len(registry.people.grants(owner, kaldvik[0].id)) == 1

    def test_a_role_that_is_not_held_cannot_be_taken(
        self, registry: Registry, owner: Principal, stranger: Principal, kaldvik: tuple[Document, Job]
    ) -> None:
        with pytest.raises(NotFoundError):
            registry.people.unshare(owner, kaldvik[0].id, stranger.user_id)

    def test_grants_go_with_their_document(
        self, registry: Registry, owner: Principal, stranger: Principal, kaldvik: tuple[Document, Job]
    ) -> None:
        document, _ = kaldvik
        registry.people.share(owner, document.id, user="Bob")
        registry.tombstone(owner, document.id)
        assert allowed(registry, stranger, document.id) == set()
        registry.complete_deletion(document.id, registry.purge(document.id))
        assert registry.people.roles(stranger, [document.id]) == {}


class TestGroups:
    def test_only_administrators_manage_them(
        self, registry: Registry, stranger: Principal, harbour: str
    ) -> None:
        people = registry.people
        for call in (
            lambda: people.create_group(stranger, "Mine"),
            lambda: people.delete_group(stranger, harbour),
            lambda: people.add_member(stranger, harbour, "Bob"),
            lambda: people.remove_member(stranger, harbour, stranger.user_id),
            lambda: people.users(stranger),
            lambda: people.create_user(stranger, "Eve"),
        ):
            with pytest.raises(NotAllowedError):
                call()

    def test_members_see_theirs(
        self, registry: Registry, admin: Principal, owner: Principal, stranger: Principal, harbour: str
    ) -> None:
        other = registry.people.create_group(admin, "Archive")
        assert [group.name for group in registry.people.groups(admin)] == ["Archive", "Harbour"]
        assert [group.id for group in registry.people.groups(stranger)] == [harbour]
        assert registry.people.groups(owner) == []
        assert [user.name for user in registry.people.members(stranger, harbour)] == ["Bob"]
        for group_id in (other.id, "grp_unknown"):
            with pytest.raises(NotFoundError):
                registry.people.members(stranger, group_id)

    def test_a_name_is_taken_once(self, registry: Registry, admin: Principal, harbour: str) -> None:
        with pytest.raises(ConflictError, match="group Harbour") as raised:
            registry.people.create_group(admin, " Harbour ")
        assert raised.value.param == "name"

    def test_joining_twice_is_joining_once(
        self, registry: Registry, admin: Principal, stranger: Principal, harbour: str
    ) -> None:
        user, joined = registry.people.add_member(admin, harbour, "Bob")
        assert (user.id, joined) == (stranger.user_id, False)

    def test_what_is_not_there_is_said(self, registry: Registry, admin: Principal, harbour: str) -> None:
        people = registry.people
        with pytest.raises(InvalidValueError, match="no user"):
            people.add_member(admin, harbour, "Eve")
        for call in (
            lambda: people.add_member(admin, "grp_unknown", "Bob"),
            lambda: people.remove_member(admin, harbour, admin.user_id),
            lambda: people.delete_group(admin, "grp_unknown"),
        ):
            with pytest.raises(NotFoundError):
                call()


class TestUsers:
    def test_users_by_name(self, registry: Registry, admin: Principal, owner: Principal) -> None:
        registry.people.create_user(admin, "Cleo")
        assert [user.name for user in registry.people.users(admin)] == ["Ada", "Cleo", "Root"]
        assert [user.name for user in registry.people.users(admin, after="Ada", limit=1)] == ["Cleo"]
        assert registry.people.user("Cleo").name == "Cleo"

    @pytest.mark.parametrize("name", ["Ada", " Ada", "A\u200bda", "usr_1", "", " ", "x" * 201, "a\nb\0"])
    def test_a_name_that_is_taken_or_misleads_is_refused(
        self, registry: Registry, admin: Principal, owner: Principal, name: str
    ) -> None:
        with pytest.raises((ConflictError, InvalidValueError), match="name: ") as raised:
            registry.people.create_user(admin, name)
        assert raised.value.param == "name"
        assert [user.name for user in registry.people.users(admin)] == ["Ada", "Root"]

    def test_the_first_admin_is_made_also_where_the_name_is_taken(self, registry: Registry) -> None:
        registry.create_user("admin")
        secret = registry.ensure_admin()
        assert secret is not None
        principal = registry.authenticate(secret)
        assert principal is not None
        assert registry.people.user(principal.user_id).name == "admin 2"


def _later(**time: float) -> datetime:
    return datetime.now(UTC) + timedelta(**time)


@pytest.fixture
def travel(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Have the clock of keys stand so much later."""

    def to(later: timedelta) -> None:
        for module in ("access", "keys"):
            monkeypatch.setattr(f"km_registry.store.{module}.now", lambda: datetime.now(UTC) + later)

    return to


class TestKeys:
    def test_a_key_works_until_it_is_revoked(self, registry: Registry, owner: Principal) -> None:
        key, secret = registry.people.create_key(owner, "laptop")
        found = registry.authenticate(secret)
        assert found == owner
        assert found is not None
        assert found.key_id == key.id
        assert registry.people.holder(key.id) == found
        revoked = registry.people.revoke_key(owner, key.id)
        assert revoked.revoked_at is not None
        assert registry.authenticate(secret) is None
        assert registry.people.holder(key.id) is registry.people.holder("key_unknown") is None
        assert registry.people.revoke_key(owner, key.id) == revoked

    def test_a_key_works_until_it_expires(
        self, registry: Registry, owner: Principal, travel: Callable[[timedelta], None]
    ) -> None:
        key, secret = registry.people.create_key(owner, "laptop", expires_at=_later(hours=1))
        assert registry.authenticate(secret) == registry.people.holder(key.id) == owner
        travel(timedelta(hours=2))
        assert registry.authenticate(secret) is None
        assert registry.people.holder(key.id) is None

    def test_a_key_that_expires_makes_none_that_outlives_it(
        self, registry: Registry, owner: Principal
    ) -> None:
        _, secret = registry.people.create_key(owner, "laptop", expires_at=_later(hours=1))
        brief = registry.authenticate(secret)
        assert brief is not None
        for expires_at in (None, _later(hours=2)):
            with pytest.raises(InvalidValueError, match="outlives") as raised:
                registry.people.create_key(brief, "another", expires_at=expires_at)
            assert raised.value.param == "expires_at"
        registry.people.create_key(brief, "another", expires_at=_later(minutes=30))

    def test_the_last_use_is_noted_to_a_minute(
        self, registry: Registry, owner: Principal, travel: Callable[[timedelta], None]
    ) -> None:
        key, secret = registry.people.create_key(owner, "laptop")
        assert key.last_used_at is None

        def noted() -> datetime:
            registry.authenticate(secret)
            (found,) = [one for one in registry.people.keys(owner) if one.id == key.id]
            assert found.last_used_at is not None
            return found.last_used_at

        first = noted()
        assert noted() == first
        travel(timedelta(minutes=2))
        assert noted() - first > timedelta(minutes=1)

    def test_secrets_are_kept_nowhere(
        self, registry: Registry, owner: Principal, settings: RegistrySettings
    ) -> None:
        _, secret = registry.people.create_key(owner, "laptop")
        registry.authenticate(secret)
        registry.close()
        assert all(secret.encode() not in path.read_bytes() for path in files_below(settings.data_dir))

    def test_an_end_in_the_past_is_refused(self, registry: Registry, owner: Principal) -> None:
        with pytest.raises(InvalidValueError, match="past") as raised:
            registry.people.create_key(owner, "laptop", expires_at=_later(seconds=-1))
        assert raised.value.param == "expires_at"

    def test_a_name_is_taken_once_among_keys_that_work(self, registry: Registry, owner: Principal) -> None:
        key, _ = registry.people.create_key(owner, "laptop")
        with pytest.raises(ConflictError, match="key laptop already"):
            registry.people.create_key(owner, "laptop")
        registry.people.revoke_key(owner, key.id)
        registry.people.create_key(owner, "laptop")

    def test_keys_are_their_users_business_and_administrators(
        self, registry: Registry, owner: Principal, stranger: Principal, admin: Principal
    ) -> None:
        key, _ = registry.people.create_key(admin, "for Ada", user="Ada")
        assert key.user_id == owner.user_id
        assert key in registry.people.keys(owner)
        assert key in registry.people.keys(admin, user="Ada")
        assert key not in registry.people.keys(stranger)
        for key_id in (key.id, "key_unknown"):
            with pytest.raises(NotFoundError):
                registry.people.revoke_key(stranger, key_id)
        for user in ("Ada", "Eve"):
            with pytest.raises(InvalidValueError, match="only administrators"):
                registry.people.create_key(stranger, "for others", user=user)
            with pytest.raises(InvalidValueError, match="only administrators"):
                registry.people.keys(stranger, user=user)
        registry.people.revoke_key(admin, key.id)

    def test_administrators_cannot_lock_themselves_out(self, registry: Registry) -> None:
        secret = registry.ensure_admin()
        assert secret is not None
        admin = registry.authenticate(secret)
        assert admin is not None
        assert admin.key_id is not None
        with pytest.raises(ConflictError, match="last key"):
            registry.people.revoke_key(admin, admin.key_id)
        registry.people.create_key(admin, "another")
        registry.people.revoke_key(admin, admin.key_id)


class TestClaims:
    """What a stream that goes on rests on."""

    def test_a_claim_stands_until_its_ground_is_gone(
        self,
        registry: Registry,
        owner: Principal,
        stranger: Principal,
        kaldvik: tuple[Document, Job],
        travel: Callable[[timedelta], None],
    ) -> None:
        document, _ = kaldvik
        key, _ = registry.people.create_key(stranger, "laptop")
        other, _ = registry.people.create_key(stranger, "phone", expires_at=_later(hours=1))
        registry.people.share(owner, document.id, user="Bob")
        read = Claim(stranger, key.id, Action.READ, document.id)
        ask = Claim(stranger, other.id, Action.ASK, document.id)
        base = Claim(stranger, other.id, Action.ASK, None)
        keyless = Claim(stranger, None, Action.READ, document.id)
        train = Claim(stranger, key.id, Action.TRAIN, document.id)
        owners = Claim(owner, None, Action.TRAIN, document.id)
        claims = {read, ask, base, keyless, train, owners}
        assert registry.people.standing(claims) == claims - {train}
        registry.people.revoke_key(stranger, key.id)
        assert registry.people.standing(claims) == {ask, base, keyless, owners}
        registry.people.unshare(owner, document.id, stranger.user_id)
        assert registry.people.standing(claims) == {base, owners}
        travel(timedelta(hours=2))
        assert registry.people.standing(claims) == {owners}
        registry.tombstone(owner, document.id)
        assert registry.people.standing(claims) == {owners}
        registry.complete_deletion(document.id, registry.purge(document.id))
        assert registry.people.standing(claims) == set()

    def test_a_user_who_is_not_there_has_none(self, registry: Registry) -> None:
        assert registry.people.standing({Claim(Principal("usr_none"), None, Action.ASK, None)}) == set()


def _said(registry: Registry, by: Principal, **wanted: str) -> list[tuple[str, str | None, str | None, str]]:
    entries = registry.people.audit(by, **wanted)
    return [(entry.action, entry.target_id, entry.other_id, entry.outcome) for entry in reversed(entries)]


class TestAudit:
    def test_it_says_who_did_what(
        self, registry: Registry, owner: Principal, stranger: Principal, admin: Principal
    ) -> None:
        document, _, _ = registry.add_document(owner, "Kaldvik", FIRST)
        registry.add_document(owner, "Kaldvik", FIRST)
        registry.people.note_asked([Claim(owner, owner.key_id, Action.ASK, document.id)])
        registry.people.share(owner, document.id, user="Bob")
        registry.people.unshare(owner, document.id, stranger.user_id)
        registry.update_document(owner, document.id, SECOND)
        registry.update_document(owner, document.id, SECOND)
        registry.tombstone(owner, document.id)
        assert _said(registry, admin, actor_id=owner.user_id) == [
            ("document.create", document.id, None, "done"),
            ("document.ask", document.id, None, "done"),
            ("grant.reader", document.id, stranger.user_id, "done"),
            ("grant.remove", document.id, stranger.user_id, "done"),
            ("document.update", document.id, None, "done"),
            ("document.delete", document.id, None, "done"),
        ]

    def test_it_says_who_tried_what(
        self, registry: Registry, owner: Principal, stranger: Principal, kaldvik: tuple[Document, Job]
    ) -> None:
        for document_id in (kaldvik[0].id, UNKNOWN, FIRST):
            with pytest.raises(NotFoundError):
                registry.get_document(stranger, document_id)
        with pytest.raises(NotFoundError):
            registry.tombstone(stranger, kaldvik[0].id)
        with pytest.raises(NotFoundError):
            registry.retrain(stranger, kaldvik[0].id)
        with pytest.raises(NotFoundError):
            registry.update_document(stranger, kaldvik[0].id, SECOND)
        assert _said(registry, stranger, actor_id=stranger.user_id) == [
            ("document.read", kaldvik[0].id, None, "refused"),
            ("document.read", UNKNOWN, None, "refused"),
            ("document.read", "(malformed)", None, "refused"),
            ("document.delete", kaldvik[0].id, None, "refused"),
            ("document.train", kaldvik[0].id, None, "refused"),
            ("document.update", kaldvik[0].id, None, "refused"),
        ]

    def test_it_holds_no_content(
        self, registry: Registry, owner: Principal, admin: Principal, kaldvik: tuple[Document, Job]
    ) -> None:
        registry.people.create_key(owner, "laptop")
        registry.people.create_group(admin, "Harbour")
        told = repr(registry.people.audit(admin))
        assert all(word not in told for word in ("Kaldvik", "lighthouse", "laptop", "Harbour", "Ada"))

    def test_everybody_sees_what_concerns_them(
        self,
        registry: Registry,
        owner: Principal,
        stranger: Principal,
        admin: Principal,
        kaldvik: tuple[Document, Job],
    ) -> None:
        document, _ = kaldvik
        with pytest.raises(NotFoundError):
            registry.get_document(stranger, document.id)
        key, _ = registry.people.create_key(admin, "for Ada", user="Ada")
        assert _said(registry, owner)[-2:] == [
            ("document.read", document.id, None, "refused"),
            ("key.create", key.id, owner.user_id, "done"),
        ]
        assert "key.create" not in {action for action, _, _, _ in _said(registry, stranger, target_id=key.id)}
        registry.people.share(owner, document.id, user="Bob")
        seen = _said(registry, stranger, target_id=document.id)
        assert ("document.create", document.id, None, "done") not in seen

    def test_pages_and_pruning(self, registry: Registry, admin: Principal) -> None:
        for number in range(5):
            registry.people.create_group(admin, f"Group {number}")
        newest = registry.people.audit(admin, limit=2)
        rest = registry.people.audit(admin, before=newest[-1].id)
        ids = [entry.id for entry in newest + rest]
        assert ids == sorted(set(ids), reverse=True)
        assert registry.people.prune_audit(newest[-1].at) == len(rest)
        assert registry.people.audit(admin) == newest


def test_a_km_of_a_shared_document_is_the_readers_too(
    registry: Registry, owner: Principal, stranger: Principal, kaldvik: tuple[Document, Job]
) -> None:
    document, job = kaldvik
    registry.people.share(owner, document.id, user="Bob")
    km = publish(registry, document, job)
    assert registry.kms_of(stranger) == [km]
