"""Run every attack once per user and per way of making sandboxes, for all tests of a file."""

import os
from typing import Any

import pytest

from tests.attacks.catalog import ATTACKS
from tests.attacks.runner_process import run_attacks

pytest.register_assert_rewrite("tests.attacks.fence_contract")

USERS = [
    pytest.param("root", marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root to run as root")),
    "ordinary",
]


@pytest.fixture(scope="module", params=USERS)
def user(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def results(user: str, way: str) -> tuple[str, dict[tuple[str, bool], dict[str, Any]]]:
    """Return the user and the results. Each file has a fixture `way`, which names its ways of making sandboxes."""
    plan = [(attack, guards) for attack, removed in ATTACKS.items() for guards in ([], removed)]
    if way.endswith("-warm"):
        plan = [(attack, guards) for attack, guards in plan if not guards]
    return user, run_attacks(plan, user, way)
