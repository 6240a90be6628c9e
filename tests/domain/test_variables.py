"""The names that the sandbox sets itself are reserved, and names that people use are not."""

import pytest

from domain.ports import EgressHost, ProgramNetwork
from domain.shared.variables import GATEWAY_VARIABLES, find_gateway_names, find_name_problem, list_variable_problems
from infra.sandbox.fence import GUEST_ENVIRONMENT
from infra.sandbox.program_network import build_network_variables


def test_all_that_the_sandbox_sets_is_reserved() -> None:
    assert [name for name in GUEST_ENVIRONMENT if find_name_problem(name) is None] == []
    hosts = (EgressHost("api.example.com", (443,)),)
    proxied = build_network_variables(ProgramNetwork(hosts=hosts, proxied_domains=("example.com",)))
    assert [name for name in proxied if find_name_problem(name) is None] == []
    assert set(build_network_variables(ProgramNetwork(gateway=True))) <= GATEWAY_VARIABLES


@pytest.mark.parametrize(
    "name",
    [
        *("TZ", "LC_ALL", "DEBUG", "PYTHONUNBUFFERED", "PYTHONWARNINGS", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"),
        *("AWS_SECRET_ACCESS_KEY", "HF_HOME", "MPLCONFIGDIR", "USER", "_", "path", "OPENAI_API_KEY", "A" * 256),
    ],
)
def test_names_that_people_use_are_free(name: str) -> None:
    assert find_name_problem(name) is None


def test_the_reason_fits_the_name() -> None:
    assert "prompt" in str(find_name_problem("PYTHONSTARTUP"))
    assert "modules" in str(find_name_problem("PYTHONPATH"))
    assert list(list_variable_problems({"": "x"})) == [("", "has a variable whose name is empty.")]


def test_names_of_the_gateway_are_found() -> None:
    assert find_gateway_names(["A", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY"]) == ["ANTHROPIC_API_KEY", "OPENAI_BASE_URL"]
