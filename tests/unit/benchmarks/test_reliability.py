"""What the reliability benchmark makes of its parts."""

from __future__ import annotations

from benchmarks.reliability import PARTS, merged


def test_the_parts_are_summed_into_what_is_asked_for() -> None:
    parts = {name: {"bad_inputs": 2, "crashes": 1} for name in PARTS}
    parts["kills_0"] = {"kills": 24, "lost": 1, "problems": ["lost: doc_a"]}
    parts["load"] = {"load_errors": 3, "p99_ms": 41.5, "clients": 200}
    found = merged(parts)
    assert (found["kills"], found["lost"], found["load_errors"], found["p99_ms"]) == (24, 1, 3, 41.5)
    assert (found["bad_inputs"], found["crashes"]) == (2 * (len(PARTS) - 2), len(PARTS) - 2)
    assert found["parts"]["kills_0"] == {"problems": ["lost: doc_a"]}
    assert {"double_published", "orphans", "canary_hits", "acl_checks", "acl_leaks"} <= set(found)
