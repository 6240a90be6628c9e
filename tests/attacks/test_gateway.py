"""Attacks from programs with a gateway: those on every sandbox, and those on the gateway itself."""

from typing import Any

import pytest

from tests.attacks.catalog import ATTACKS, GATEWAY_ATTACKS, NEEDS_GROUPS, NOT_WITH_A_GATEWAY, ROOT_ONLY
from tests.attacks.runner_process import run_attacks


@pytest.fixture(
    scope="module",
    params=[f"{backend}-gateway{warm}" for backend in ("bubblewrap", "forkserver") for warm in ("", "-warm")],
)
def gateway_results(user: str, request: pytest.FixtureRequest) -> tuple[str, dict[tuple[str, bool], dict[str, Any]]]:
    plan: list[tuple[str, list[str]]] = [(name, []) for name in ATTACKS if name not in NOT_WITH_A_GATEWAY | ROOT_ONLY]
    plan += [(name, []) for name in GATEWAY_ATTACKS]
    if not request.param.endswith("-warm"):
        plan += list(GATEWAY_ATTACKS.items())
    return request.param, run_attacks(plan, user, request.param)


def test_fence_holds_with_a_gateway(gateway_results) -> None:
    _, by_attack = gateway_results
    for result in [result for (_, is_whole), result in by_attack.items() if is_whole]:
        if result["attack"] in NEEDS_GROUPS and not result["groups"]:
            continue
        assert result.get("broke") is False, result
        # An attack that failed by itself was not held; one that was ended for what it did was.
        assert result["error_type"] not in ("sandbox_unavailable", "AssertionError", "KeyError", "NameError"), result


def test_attacks_on_a_gateway_are_real(gateway_results) -> None:
    way, by_attack = gateway_results
    if not way.endswith("-warm"):
        for attack in GATEWAY_ATTACKS:
            assert by_attack[(attack, False)].get("broke") is True, by_attack[(attack, False)]
