"""A worker raises its limit of open files, and says what to change where the limit is too low."""

import resource
import subprocess
import sys

import pytest

from infra.descriptors import explain_low_limit

PREPARE = """
import resource, structlog, sys
soft, hard = map(int, sys.argv[1:3])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from workers.descriptors import prepare_descriptors
from infra.settings import Settings
class Some:
    run_slots, llm_slots = 8, 256
prepare_descriptors(sys.argv[3], Some)
print("limit", resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def prepare(soft: int, hard: int, process: str) -> str:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < hard:
        pytest.skip("this host allows fewer open files")
    arguments = [sys.executable, "-c", PREPARE, str(soft), str(hard), process]
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout


def test_limit_is_raised_to_what_the_host_allows() -> None:
    output = prepare(256, 8192, "run")
    assert "limit 8192" in output
    assert "low" not in output


def test_low_limit_is_reported_with_what_to_change() -> None:
    output = prepare(256, 1024, "run")
    assert "limit 1024" in output
    assert "may have 1024 files open, and may need" in output
    assert "PADDOCK_RUN_SLOTS" in output
    assert "low" not in prepare(256, 1024, "plan")


def test_sufficient_limit_needs_no_words() -> None:
    assert explain_low_limit(1000, 1000) is None
    assert "LimitNOFILE" in str(explain_low_limit(999, 1000))
