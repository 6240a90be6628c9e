"""Attacks on the sandboxes that bubblewrap makes, cold and warm."""

import pytest

from tests.attacks.fence_contract import FenceContract, check_outliving


@pytest.fixture(scope="module", params=["bubblewrap", "bubblewrap-warm"])
def way(request: pytest.FixtureRequest) -> str:
    return request.param


class TestBubblewrap(FenceContract):
    backend = "bubblewrap"


# Its slots are sent a signal when their worker ends.
@pytest.mark.parametrize(("without", "outlives"), [("", False), ("seccomp", True)])
def test_agent_does_not_outlive_its_worker(user: str, without: str, outlives: bool) -> None:
    check_outliving(user, "bubblewrap", without, outlives)
