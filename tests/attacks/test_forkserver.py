"""Attacks on the sandboxes that the fork server makes, cold and warm."""

import pytest

from tests.attacks.fence_contract import FenceContract, check_outliving


@pytest.fixture(scope="module", params=["forkserver", "forkserver-warm"])
def way(request: pytest.FixtureRequest) -> str:
    return request.param


class TestForkServer(FenceContract):
    backend = "forkserver"


# Its slots live in its process namespace and end with it.
@pytest.mark.parametrize(("without", "outlives"), [("", False), ("seccomp", False), ("seccomp,processes", True)])
def test_agent_does_not_outlive_its_worker(user: str, without: str, outlives: bool) -> None:
    check_outliving(user, "forkserver", without, outlives)
