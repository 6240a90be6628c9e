"""Test pages, payloads, log levels, scopes, times and settings."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain import executions
from domain.events import parse_level
from domain.executions import ExecutionStart, build_payload
from domain.ports import SandboxOutcome
from domain.shared import access
from domain.shared.access import ALL_SCOPES, SCOPES_BY_ROLE, Caller, limit_scopes
from domain.shared.errors import ERROR_CODES, DomainError
from domain.shared.json_limits import MAX_JSON_DEPTH
from domain.shared.pages import MAX_PAGE_LIMIT, build_listing, parse_page
from domain.shared.times import read_time
from infra.settings import Secret, SettingsError, read_settings

REQUIRED_SETTINGS = {
    "PADDOCK_DATABASE_URL": "postgresql://x",
    "PADDOCK_REDIS_URL": "redis://x",
    "PADDOCK_SECRET_KEY": "s" * 32,
    "R2_ACCOUNT_ID": "abc",
    "R2_ACCESS_KEY_ID": "k",
    "R2_SECRET_ACCESS_KEY": "hidden",
}


@given(st.integers(1, MAX_PAGE_LIMIT), st.integers(1, 5000))
def test_page_number_and_offset_are_equivalent(size: int, number: int) -> None:
    assert parse_page(None, None, None, number, size) == parse_page(size, (number - 1) * size, None, None, None)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((0, None, None, None, None), "limit"),
        ((1001, None, None, None, None), "limit"),
        ((None, -1, None, None, None), "offset"),
        ((None, 1, 2, None, None), "skip"),
        ((None, 1, None, 2, None), "page"),
        ((5, None, None, None, 6), "page_size"),
        ((None, None, None, 0, None), "page"),
    ],
)
def test_invalid_page_parameter_is_named(arguments: Any, field: str) -> None:
    with pytest.raises(DomainError) as caught:
        parse_page(*arguments)
    assert caught.value.errors[0].field == field


@given(st.integers(0, 60), st.integers(1, 20), st.integers(0, 60))
def test_has_more_is_true_only_if_rows_follow(total: int, limit: int, offset: int) -> None:
    page = parse_page(limit, offset, None, None, None)
    rows = list(range(total))[offset : offset + limit + 1]
    listing = build_listing(rows, total, page)
    assert listing.items == rows[:limit]
    assert listing.has_more == (offset + limit < total)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=20,
)


def test_payload_depth_is_limited() -> None:
    value: Any = {}
    for _ in range(MAX_JSON_DEPTH + 1):
        value = {"a": value}
    with pytest.raises(DomainError, match="nests deeper"):
        build_payload(ExecutionStart(payload=value))


def test_payload_is_built_from_task_and_inputs() -> None:
    assert build_payload(ExecutionStart(task="t", inputs={"a": 1})) == {"task": "t", "a": 1}
    with pytest.raises(DomainError, match="given twice"):
        build_payload(ExecutionStart(task="t", inputs={"task": 1}))
    with pytest.raises(DomainError, match="means payload"):
        build_payload(ExecutionStart(payload={}, inputs={}))


def test_too_deep_result_is_an_error() -> None:
    deep = b"[" * 200 + b"]" * 200
    assert executions.enforce_result_limits(SandboxOutcome(output=deep)).error_type == "result_not_json"
    assert executions.enforce_result_limits(SandboxOutcome(output=b"[1]")).output == b"[1]"


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("WARNING:root:x", "WARNING"),
        ("[ERROR] x", "ERROR"),
        ("CRITICAL x", "ERROR"),
        ("DEBUG: x", "DEBUG"),
        ("all is well", "INFO"),
        ("ERRORS were none", "INFO"),
    ],
)
def test_log_level_is_read_from_the_line(line: str, level: str) -> None:
    assert parse_level(line) == level


@given(st.sets(st.sampled_from(sorted(ALL_SCOPES))), st.sampled_from(["admin", "member", "viewer"]))
def test_key_scopes_never_exceed_the_owners_role(scopes: set[str], role: Any) -> None:
    assert limit_scopes(role, frozenset(scopes)) <= SCOPES_BY_ROLE[role]


def test_member_key_cannot_manage_keys() -> None:
    member = Caller(tenant_id="t", user_id="u", role="member", scopes=SCOPES_BY_ROLE["member"], key_id="key_1")
    with pytest.raises(DomainError):
        access.require_scope(member, "account")
    access.require_scope(Caller(tenant_id="t", user_id="u", role="viewer", scopes=SCOPES_BY_ROLE["viewer"]), "account")


def test_times_without_offset_are_utc_and_stay_in_years_1_to_9999() -> None:
    assert read_time("since", datetime(2026, 1, 1)) == datetime(2026, 1, 1, tzinfo=UTC)
    for text in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"):
        with pytest.raises(DomainError, match="years 1 to 9999"):
            read_time("since", datetime.fromisoformat(text))
    assert read_time("since", datetime(2026, 1, 1, tzinfo=UTC)) == datetime(2026, 1, 1, tzinfo=UTC)


def test_invalid_setting_is_named() -> None:
    assert read_settings(REQUIRED_SETTINGS).r2_endpoint_url.startswith("https://abc.")
    for name, value, message in (
        ("PADDOCK_SECRET_KEY", "short", "PADDOCK_SECRET_KEY"),
        ("PADDOCK_PORT", "many", "PADDOCK_PORT"),
        ("PADDOCK_DOCS", "maybe", "PADDOCK_DOCS"),
        ("PADDOCK_RUN_SLOTS", "-1", "PADDOCK_RUN_SLOTS"),
        ("PADDOCK_REDIS_URL", "", "PADDOCK_REDIS_URL"),
    ):
        with pytest.raises(SettingsError, match=message):
            read_settings({**REQUIRED_SETTINGS, name: value})


def test_secrets_are_not_printed() -> None:
    import msgspec

    settings = read_settings(REQUIRED_SETTINGS)
    assert "hidden" not in repr(settings)
    with pytest.raises(TypeError):
        msgspec.json.encode(settings)
    assert Secret("a").reveal() == "a"


def test_every_error_code_has_a_status() -> None:
    from api.errors import ERROR_TABLE

    assert set(ERROR_TABLE) == ERROR_CODES
