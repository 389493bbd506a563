"""Which KE an answer is given with, and why."""

from __future__ import annotations

from dataclasses import dataclass

from km_registry.base_model import BaseModel
from km_registry.ke_records import KERecords
from km_registry.prompts import PROMPT_FORMAT
from km_registry.types import KE
from server.errors import NoKEError, UnknownKEError
from server.modes import AutoPolicy, Mode

#: What a request may say instead of a KE's name or id.
NONE, DEFAULT = "none", "default"
_REGISTER = "An administrator registers one with POST /kes or `km ke add`. Ask without `ke` meanwhile."


@dataclass(frozen=True, slots=True)
class KEChoice:
    """The KE that an answer is given with, if any, and why, in a short sentence."""

    ke: KE | None
    why: str


NO_KE = KEChoice(None, "none was asked for")


class KEs:
    """Chooses among the KEs that are registered for the base model that is served."""

    def __init__(self, records: KERecords, base_model: BaseModel, policy: AutoPolicy) -> None:
        self._records = records
        self._base_model = base_model
        self._policy = policy

    def choose(self, asked: str | None, mode: Mode, *, auto: bool) -> KEChoice:
        """What `ke` in a question means when this mode answers. Blocking.

        `auto` says that the mode was not asked for: then, without `ke`, the policy decides.

        Raises:
            UnknownKEError: there is none of this name or id, or it is for another base model.
            NoKEError: the default is asked for, and there is none.
        """
        match asked:
            case None:
                return self._unasked(mode, auto=auto)
            case "none":
                return NO_KE
            case "default":
                return KEChoice(self._default(), "the default was asked for")
            case _:
                return KEChoice(self._named(asked), "it was asked for")

    def ahead(self) -> KE | None:
        """The KE that mode auto would join with a KM, for composites made ahead. Blocking."""
        return self._unasked(self._policy.trained, auto=True).ke if self._policy.trained.uses_km else None

    def fits(self, ke: KE) -> bool:
        """Whether it is for the base model that is served."""
        return ke.base_fingerprint == self._base_model.fingerprint

    @staticmethod
    def warning(ke: KE) -> str | None:
        """What to beware of in answers with it: that it was trained under another prompt format."""
        if ke.prompt_format == PROMPT_FORMAT:
            return None
        return (
            f"The KE {ke.name} was trained for the prompt format {ke.prompt_format}, and is asked in "
            f"{PROMPT_FORMAT}: answers may be worse than they were measured. Register one trained for this."
        )

    def _unasked(self, mode: Mode, *, auto: bool) -> KEChoice:
        if not auto:
            return KEChoice(None, f"mode {mode} uses none unless one is asked for")
        if not self._policy.wants_ke(mode):
            return KEChoice(None, f"mode auto uses none with {mode} here")
        ke = self._records.default_for(self._base_model.fingerprint)
        if ke is None:
            return KEChoice(None, "no default KE is registered for the base model")
        return KEChoice(ke, "mode auto uses the default KE")

    def _default(self) -> KE:
        ke = self._records.default_for(self._base_model.fingerprint)
        if ke is None:
            raise NoKEError(
                f"ke: there is no default KE for the base model that is served, {self._base_model.name}. "
                f"{_REGISTER}"
            )
        return ke

    def _named(self, asked: str) -> KE:
        ke = self._records.find(asked, base_fingerprint=self._base_model.fingerprint)
        if ke is not None:
            return ke
        if other := self._records.find(asked):
            raise UnknownKEError(
                f"ke: {asked!r} is for another base model, {other.base_model}, than the one that is served, "
                f"{self._base_model.name}. GET /kes lists those that fit.",
                param="ke",
            )
        if not any(self.fits(one) for one in self._records.all()):
            raise NoKEError(f"ke: there is no KE {asked!r}, nor any for {self._base_model.name}. {_REGISTER}")
        raise UnknownKEError(
            f"ke: there is no KE {asked!r}. GET /kes lists those that there are.", param="ke"
        )
