"""Schemathesis over the server's own description: chains of requests that follow what responses name, and
every operation by itself, with sound and unsound values. What is promised of each response is checked."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from math import ceil
from typing import Any, ClassVar

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import FlakyStrategyDefinition
from schemathesis import Case, Response
from schemathesis.checks import not_a_server_error
from schemathesis.generation.stateful.state_machine import APIStateMachine
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi import checks as promised

from tests.inprocess import Served

CHECKS = [
    not_a_server_error,
    promised.status_code_conformance,
    promised.content_type_conformance,
    promised.response_schema_conformance,
    promised.ignored_auth,
    promised.use_after_free,
    promised.ensure_resource_availability,
]
#: Nobody trains here, and the events of a document that waits for its training do not end.
ENDLESS = "/documents/{document_id}/events"
#: Chains of one run of hypothesis.
_TOGETHER = 4


class ApiFuzz:
    """Fuzzes one served application as its administrator; counts the answers by status."""

    def __init__(self, served: Served) -> None:
        self._url = served.url
        self._headers = {"Authorization": f"Bearer {served.place.admin_key}"}
        self.statuses: Counter[int] = Counter()
        schema = schemathesis.openapi.from_dict(served.place.app.openapi())
        self._schema: BaseSchema = schema.exclude(path=ENDLESS)

    @property
    def requests(self) -> int:
        """How many were answered."""
        return self.statuses.total()

    def chains(self, examples: int, *, steps: int = 8) -> None:
        """Chains of requests. Raises what schemathesis raises when a check fails."""
        fuzz = self

        class Chain(self._schema.as_state_machine()):  # type: ignore[misc]
            machine: ClassVar[type[APIStateMachine]]

            def get_call_kwargs(self, case: Case) -> dict[str, Any]:
                return {"base_url": fuzz._url, "headers": fuzz._headers}

            def after_call(self, response: Response, case: Case) -> None:
                fuzz.statuses[response.status_code] += 1

            def validate_response(self, response: Response, case: Case, *_: Any, **kwargs: Any) -> None:
                try:
                    case.validate_response(response, checks=CHECKS, transport_kwargs=kwargs)
                except BaseException as failure:
                    failures.append(failure)
                    raise

        failures: list[BaseException] = []
        for number in range(ceil(examples / _TOGETHER)):
            # What can be asked next depends on what the server has by now: a chain that begins like one
            # before may go on otherwise, which ends that run of hypothesis and says nothing of the server.
            with suppress(FlakyStrategyDefinition):
                seed(number)(Chain).run(settings=_bounded(_TOGETHER, stateful_step_count=steps))
        if failures:
            raise failures[0]

    def operations(self, examples: int) -> None:
        """Every operation by itself."""
        for found in self._schema.get_all_operations():
            operation = found.ok()

            @_bounded(examples)
            @given(case=operation.as_strategy())
            def ask(case: Case) -> None:
                sent = {"base_url": self._url, "headers": self._headers}
                response = case.call(**sent)
                self.statuses[response.status_code] += 1
                case.validate_response(response, checks=CHECKS, transport_kwargs=sent)

            ask()


def _bounded(examples: int, **more: Any) -> settings:
    """The same examples each time."""
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        **more,
    )
