"""Attacks from programs with declared hosts, on what they may reach besides."""

from typing import Any

import pytest

from tests.attacks.catalog import EGRESS_ATTACKS
from tests.attacks.runner_process import run_attacks


@pytest.fixture(
    scope="module",
    params=[f"{backend}-egress{warm}" for backend in ("bubblewrap", "forkserver") for warm in ("", "-warm")],
)
def egress_results(user: str, request: pytest.FixtureRequest) -> tuple[str, dict[tuple[str, bool], dict[str, Any]]]:
    plan: list[tuple[str, list[str]]] = [(name, []) for name in EGRESS_ATTACKS]
    if not request.param.endswith("-warm"):
        plan += list(EGRESS_ATTACKS.items())
    return request.param, run_attacks(plan, user, request.param)


@pytest.mark.parametrize("attack", EGRESS_ATTACKS)
def test_the_fence_holds_with_declared_hosts_as_well(egress_results, attack: str) -> None:
    way, by_attack = egress_results
    result = by_attack[(attack, True)]
    assert (result.get("broke"), result["error_type"]) == (False, None), result
    if not way.endswith("-warm"):
        assert by_attack[(attack, False)].get("broke") is True, by_attack[(attack, False)]
