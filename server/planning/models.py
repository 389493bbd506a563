"""What profiles and workloads have in common: strict, frozen, refused with a line that names the field."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from server.planning.errors import PlanningError

_Model = TypeVar("_Model", bound="Strict")


class Strict(BaseModel):
    """Refuses names it does not know, and numbers that are none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def checked(model: type[_Model], fields: dict[str, Any], what: str) -> _Model:
    """The model of these fields.

    Raises:
        PlanningError: one of them is wrong; the first is named, as part of `what`.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "it"
        if first["type"] == "extra_forbidden":
            raise PlanningError(
                f"{what} sets {name}, which is not known. Correct the name or leave it out."
            ) from error
        raise PlanningError(f"{what}: {name}: {first['msg'].removeprefix('Value error, ')}") from error
