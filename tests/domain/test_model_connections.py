"""Test how models of Azure and Bedrock are reached: addresses, versions, regions and keys."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.llms import find_aws_region
from domain.llms.connection import check_connection
from domain.provider_keys import check_key_text
from domain.shared.aws_keys import AwsKey, InvalidAwsKey, parse_aws_key
from domain.shared.errors import DomainError

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
TOKEN = "IQoJb3JpZ2luX2VjEXAMPLETOKEN/with+signs=="


@pytest.mark.parametrize(
    ("provider", "base_url", "parameters", "field"),
    [
        ("azure", "https://x.openai.azure.com/openai/deployments/gpt", {}, "base_url"),
        ("azure", "https://x.openai.azure.com", {"api_version": "2024"}, "parameters.api_version"),
        ("azure", "https://x.openai.azure.com", {"api_version": 20241021}, "parameters.api_version"),
        ("azure", "https://x.openai.azure.com", {"api_version": None}, "parameters.api_version"),
        ("azure", "https://x.openai.azure.com", {"api_version": "2024-10-21&x=1"}, "parameters.api_version"),
        ("azure", "https://x.openai.azure.com/openai/v1/", {"api_version": "2024-10-21"}, "parameters.api_version"),
        ("bedrock", None, {}, "parameters.region"),
        ("bedrock", None, {"region": "eu-central-1.evil.example/x"}, "parameters.region"),
        ("bedrock", None, {"region": "eu-central-1\n"}, "parameters.region"),
        ("bedrock", None, {"region": 1}, "parameters.region"),
        ("bedrock", "https://gateway.example.com", {}, "parameters.region"),
    ],
)
def test_bad_connections_are_refused_by_field(provider: str, base_url: str | None, parameters: Any, field: str) -> None:
    with pytest.raises(DomainError) as caught:
        check_connection(provider, base_url, parameters)
    assert [error.field for error in caught.value.errors] == [field]


@pytest.mark.parametrize(
    ("provider", "base_url", "parameters"),
    [
        ("azure", "https://x.openai.azure.com", {}),
        ("azure", "https://x.openai.azure.com/openai/v1/", {"api_version": "preview"}),
        ("azure", "https://x.openai.azure.com", {"api_version": "2025-04-01-preview"}),
        ("bedrock", None, {"region": "us-gov-west-1"}),
        ("bedrock", "https://gateway.example.com", {"region": "eu-central-1"}),
        # The same names are ordinary parameters elsewhere.
        ("openai_compatible", "https://x.example.com", {"api_version": 1, "region": "anywhere"}),
    ],
)
def test_good_connections_pass(provider: str, base_url: str | None, parameters: Any) -> None:
    check_connection(provider, base_url, parameters)


@pytest.mark.parametrize(
    ("base_url", "parameters", "region"),
    [
        ("https://bedrock-runtime.eu-central-1.amazonaws.com", {}, "eu-central-1"),
        ("https://bedrock-runtime-fips.us-gov-west-1.amazonaws.com/", {}, "us-gov-west-1"),
        ("https://vpce-1-a.bedrock-runtime.us-east-1.vpce.amazonaws.com", {}, "us-east-1"),
        ("https://bedrock-runtime.eu-central-1.amazonaws.com.evil.example", {}, None),
        ("https://bedrock-runtime.eu-central-1.amazonaws.com", {"region": "us-west-2"}, "us-west-2"),
        (None, {}, None),
    ],
)
def test_region_is_named_by_parameter_or_address(base_url: str | None, parameters: Any, region: str | None) -> None:
    assert find_aws_region(base_url, parameters) == region


def test_aws_keys_are_read() -> None:
    key = parse_aws_key(f"AKIAIOSFODNN7EXAMPLE:{SECRET}")
    assert key == AwsKey(access_key_id="AKIAIOSFODNN7EXAMPLE", secret_access_key=SECRET)
    key = parse_aws_key(f"ASIAIOSFODNN7EXAMPLE:{SECRET}:{TOKEN}")
    assert (key.session_token, key.list_secrets()) == (TOKEN, (SECRET, TOKEN))
    bearer = "ABSKQmVkcm9ja0FQSUtleS1hYmNkZWZnaA=="
    assert parse_aws_key(bearer) == AwsKey(bearer=bearer)
    assert SECRET not in repr(key)


@pytest.mark.parametrize(
    "text",
    [
        *("AKIAIOSFODNN7EXAMPLE", f"AKIAIOSFODNN7EXAMPLE:{SECRET}:", "AKIAIOSFODNN7EXAMPLE:short", f":{SECRET}"),
        *(f"ASIAIOSFODNN7EXAMPLE:{SECRET}", f"AKIAIOSFODNN7EXAMPLE:{SECRET}:{TOKEN}:more", "short", "has a space here"),
        *(f'{{"access_key_id": "AKIAIOSFODNN7EXAMPLE", "secret": "{SECRET}"}}', f"key:{SECRET}"),
    ],
)
def test_bad_aws_keys_are_refused_without_showing_them(text: str) -> None:
    with pytest.raises(DomainError) as caught:
        check_key_text(text, "Bedrock")
    [error] = caught.value.errors
    assert error.field == "key"
    assert "ACCESS_KEY_ID:SECRET_ACCESS_KEY" in error.message
    assert SECRET not in error.message
    assert check_key_text(text, "another service") == text


@given(st.text(max_size=200))
def test_any_text_is_a_key_or_refused(text: str) -> None:
    try:
        key = parse_aws_key(text)
    except InvalidAwsKey as error:
        assert len(text) < 8 or text not in str(error)
    else:
        assert bool(key.bearer) != bool(key.access_key_id and key.secret_access_key)
