"""Test how the headers of a trusted proxy are read: which user they name, and what is refused."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.auth import KeyUsageWriter
from api.connections import ConnectionBounds
from api.middleware import RequestMiddleware
from api.proxy_logins import ProxyHeaders, read_login, remove_credential, select_headers
from domain.accounts import ProxyLogin, ProxyUser, has_login_changed, select_proxy_user
from domain.shared.errors import DomainError
from infra.settings import Settings, SettingsError, parse_networks, read_settings
from tests.journeys.test_documented_settings import MINIMAL_SETTINGS

TRUSTED_PROXIES = ("10.0.0.0/8", "fd00::7")
WORKSPACE_HEADER = ("X-Databricks-Org-Id", "1653573648247579")


def build_settings(**values: str) -> Settings:
    proxy_settings = {"PADDOCK_PROXY_LOGIN": "databricks", "PADDOCK_TRUSTED_PROXIES": ",".join(TRUSTED_PROXIES)}
    return read_settings({**MINIMAL_SETTINGS, **proxy_settings, **values})


def build_headers(*pairs: tuple[str, str | bytes]) -> ProxyHeaders:
    return tuple((k.lower().encode(), v if isinstance(v, bytes) else v.encode()) for k, v in pairs)


def read_pairs(*pairs: tuple[str, str | bytes], **values: str) -> ProxyLogin | None:
    return read_login(build_headers(*pairs), build_settings(**values))


def refuse_pairs(*pairs: tuple[str, str | bytes], **values: str) -> DomainError:
    with pytest.raises(DomainError) as caught:
        read_pairs(*pairs, **values)
    return caught.value


def test_all_proxy_headers_are_read() -> None:
    proxy_login = read_pairs(
        ("X-Forwarded-Email", " Ada@Example.COM "),
        ("X-Forwarded-User", "4711@1653573648247579"),
        ("X-Forwarded-Preferred-Username", "Ada Löve"),
        WORKSPACE_HEADER,
    )
    assert proxy_login == ProxyLogin(
        workspace="1653573648247579",
        email="ada@example.com",
        external_id="4711@1653573648247579",
        full_name="Ada Löve",
    )
    assert proxy_login is not None
    assert proxy_login.tenant_id == "workspace-1653573648247579"


@pytest.mark.parametrize(
    "pairs",
    [
        (),
        (WORKSPACE_HEADER,),
        (("X-Forwarded-Email", ""), WORKSPACE_HEADER),
        (("X-Forwarded-Email", "  "), ("X-Forwarded-User", ""), WORKSPACE_HEADER),
        (("X-Forwarded-Preferred-Username", "ada"), ("X-Forwarded-Access-Token", "dapi1"), WORKSPACE_HEADER),
    ],
)
def test_headers_without_a_user_name_no_login(pairs: tuple[tuple[str, str], ...]) -> None:
    assert read_pairs(*pairs) is None


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ((("X-Forwarded-User", "4711"),), "X-Forwarded-Email is required"),
        ((("X-Forwarded-Email", "a@example.com"), ("X-Forwarded-Email", "b@example.com")), "was sent 2 times"),
        ((("X-Forwarded-Email", "a@example.com"), ("X-Forwarded-Email", "a@example.com")), "was sent 2 times"),
        ((("X-Forwarded-Email", "a@example.com, b@example.com"),), "must be an e-mail address"),
        ((("X-Forwarded-Email", "a@example.com,b@example.com"),), "must be an e-mail address"),
        ((("X-Forwarded-Email", "ada"),), "must be an e-mail address"),
        ((("X-Forwarded-Email", "a\x00@example.com"),), "printable"),
        ((("X-Forwarded-Email", "a\r@example.com"),), "printable"),
        ((("X-Forwarded-Email", "a\u200b@example.com"),), "printable"),
        ((("X-Forwarded-Email", b"\xff@example.com"),), "UTF-8"),
        ((("X-Forwarded-Email", "a" * 300 + "@example.com"),), "at most 254"),
        ((("X-Forwarded-Email", "аda@example.com"),), "alphabets"),
        ((("X-Forwarded-Email", "a@example.com"), ("X-Forwarded-User", "1"), ("X-Forwarded-User", "2")), "was sent 2"),
        ((("X-Forwarded-Email", "a@example.com"), ("X-Forwarded-User", "x" * 256)), "at most 255"),
        ((("X-Forwarded-Email", "a@example.com"), ("X-Forwarded-User", "a\tb")), "printable"),
    ],
)
def test_invalid_header_is_refused_by_name(pairs: tuple[tuple[str, Any], ...], message: str) -> None:
    error = refuse_pairs(*pairs, WORKSPACE_HEADER)
    assert error.code == "unauthenticated"
    assert message in error.detail
    assert "X-Forwarded-" in error.detail


@pytest.mark.parametrize("name", ["x" * 201, "a\x1b[31m", b"\xff", ""])
def test_unreadable_display_name_is_omitted(name: str | bytes) -> None:
    proxy_login = read_pairs(
        ("X-Forwarded-Email", "a@example.com"), ("X-Forwarded-Preferred-Username", name), WORKSPACE_HEADER
    )
    assert proxy_login is not None
    assert proxy_login.full_name is None


EMAIL_HEADER = ("X-Forwarded-Email", "a@example.com")


def test_workspace_comes_from_the_header_or_the_setting() -> None:
    for setting in ("PADDOCK_PROXY_WORKSPACE", "DATABRICKS_WORKSPACE_ID"):
        proxy_login = read_pairs(EMAIL_HEADER, **{setting: "7"})
        assert proxy_login is not None
        assert proxy_login.workspace == "7"
        # A header that a client sent through the proxy cannot select another workspace.
        assert "another workspace" in refuse_pairs(EMAIL_HEADER, WORKSPACE_HEADER, **{setting: "7"}).detail
        assert read_pairs(EMAIL_HEADER, ("X-Databricks-Org-Id", "7"), **{setting: "7"}) == proxy_login
    assert "names no workspace" in refuse_pairs(EMAIL_HEADER).detail
    for workspace in ("A", "../x", "a b", "-1", "ü", "x" * 54, "a.b"):
        assert "X-Databricks-Org-Id" in refuse_pairs(EMAIL_HEADER, ("X-Databricks-Org-Id", workspace)).detail
    assert "was sent 2 times" in refuse_pairs(EMAIL_HEADER, WORKSPACE_HEADER, WORKSPACE_HEADER).detail


@pytest.mark.parametrize(
    ("origin", "host", "forwarded_host", "is_allowed"),
    [
        ("https://app.example.com", "app.example.com", None, True),
        ("https://APP.example.com", "app.example.com:443", None, True),
        ("https://app.example.com", "127.0.0.1:8000", "app.example.com", True),
        ("https://front.example.com", "app.example.com", None, True),
        ("https://evil.example.com", "app.example.com", None, False),
        ("https://app.example.com.evil.example", "app.example.com", None, False),
        ("https://app.example.com:8443", "app.example.com", None, False),
        ("null", "app.example.com", None, False),
        ("", "app.example.com", None, False),
    ],
)
def test_pages_of_other_origins_cannot_sign_in(
    origin: str, host: str, forwarded_host: str | None, is_allowed: bool
) -> None:
    pairs = [EMAIL_HEADER, WORKSPACE_HEADER, ("Origin", origin), ("Host", host)]
    if forwarded_host is not None:
        pairs.append(("X-Forwarded-Host", forwarded_host))
    if is_allowed:
        assert read_pairs(*pairs, CORS_ORIGINS="https://front.example.com") is not None
    else:
        assert refuse_pairs(*pairs, CORS_ORIGINS="https://front.example.com").code == "forbidden"


@pytest.mark.parametrize(
    ("peer", "is_trusted"),
    [
        (("10.1.2.3", 4000), True),
        (("::ffff:10.1.2.3", 4000), True),
        (("fd00::7", 4000), True),
        (("11.1.2.3", 4000), False),
        (("fd00::8", 4000), False),
        (("unix", 0), False),
        (None, False),
    ],
)
def test_headers_are_read_only_from_trusted_peers(peer: Any, is_trusted: bool) -> None:
    sent = build_headers(EMAIL_HEADER, WORKSPACE_HEADER, ("X-Forwarded-For", "10.1.2.3"))
    scope: Any = {"type": "http", "client": peer, "headers": list(sent)}
    trusted = parse_networks(TRUSTED_PROXIES, "trusted_proxies")
    assert select_headers(scope, trusted, build_settings()) == (sent if is_trusted else None)
    assert select_headers(scope, trusted, build_settings(PADDOCK_PROXY_LOGIN="off")) is None


def test_databricks_credential_is_removed_from_the_scope() -> None:
    scope: Any = {
        "headers": [(b"x-forwarded-access-token", b"dapi1"), (b"host", b"a"), (b"x-forwarded-access-token", b"")]
    }
    remove_credential(scope)
    assert scope["headers"] == [(b"host", b"a")]


def test_proxy_login_settings_are_validated() -> None:
    with pytest.raises(SettingsError, match="PADDOCK_PROXY_LOGIN=databricks needs PADDOCK_TRUSTED_PROXIES"):
        build_settings(PADDOCK_TRUSTED_PROXIES="")
    with pytest.raises(SettingsError, match="PADDOCK_PROXY_LOGIN must be one of off, databricks"):
        build_settings(PADDOCK_PROXY_LOGIN="on")
    with pytest.raises(SettingsError, match="PADDOCK_PROXY_WORKSPACE must be 1 to 53"):
        build_settings(PADDOCK_PROXY_WORKSPACE="My Workspace")
    # Settings of another system do not matter while sign-in is off.
    assert read_settings({**MINIMAL_SETTINGS, "DATABRICKS_WORKSPACE_ID": "My Workspace"}).proxy_login == "off"


def build_user(**fields: Any) -> ProxyUser:
    defaults = {"user_id": "u", "tenant_id": "workspace-1", "role": "member", "is_active": True, "plan": "standard"}
    return ProxyUser(**{**defaults, "email": "a@x.com", "external_id": "7", "has_password": False, **fields})


def test_login_selects_the_matching_account() -> None:
    by_id = ProxyLogin(workspace="1", email="a@x.com", external_id="7")
    by_email = ProxyLogin(workspace="1", email="a@x.com")
    same, renamed, unbound = build_user(), build_user(email="old@x.com"), build_user(external_id=None)
    other = build_user(user_id="o", external_id="8")
    assert select_proxy_user(by_id, []) is None
    assert select_proxy_user(by_email, [same]) is same
    for expected, candidates in (
        (same, [same]),
        (renamed, [renamed]),
        (renamed, [other, renamed]),
        (unbound, [unbound]),
    ):
        assert select_proxy_user(by_id, candidates) is expected
    assert not has_login_changed(by_id, same, [same])
    assert not has_login_changed(by_email, unbound, [unbound])
    assert has_login_changed(by_id, renamed, [renamed])
    assert has_login_changed(by_id, unbound, [unbound])
    # An address of another user is not moved.
    assert not has_login_changed(by_id, renamed, [other, renamed])
    for candidate in (other, build_user(tenant_id="acme"), build_user(external_id=None, has_password=True)):
        with pytest.raises(DomainError) as caught:
            select_proxy_user(by_id, [candidate])
        assert caught.value.code == "forbidden"
    with pytest.raises(DomainError):
        select_proxy_user(by_email, [build_user(tenant_id="workspace-2")])


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["x-forwarded-email", "x-forwarded-user", "x-databricks-org-id", "origin"]),
            st.binary(max_size=40),
        )
    )
)
def test_any_header_bytes_are_read_or_refused(pairs: list[tuple[str, bytes]]) -> None:
    try:
        proxy_login = read_login(build_headers(*pairs), PROXY_SETTINGS)
    except DomainError as error:
        assert error.code in ("unauthenticated", "forbidden")
    else:
        assert proxy_login is None or "@" in proxy_login.email


PROXY_SETTINGS = build_settings()


async def test_app_behind_the_middleware_never_sees_the_credential() -> None:
    seen: list[Any] = []

    async def record_scope(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)

    services: Any = SimpleNamespace(settings=build_settings(), clock=lambda: datetime.now(UTC), metrics=MagicMock())
    trusted = parse_networks(TRUSTED_PROXIES, "trusted_proxies")
    middleware = RequestMiddleware(
        record_scope, lambda: services, KeyUsageWriter(), trusted, ConnectionBounds(services.settings, trusted)
    )
    sent = [*build_headers(EMAIL_HEADER, WORKSPACE_HEADER), (b"x-forwarded-access-token", b"dapi1")]
    scope: Any = {"type": "http", "method": "GET", "path": "/health", "client": ("10.0.0.1", 1), "headers": sent}
    await middleware(scope, MagicMock(), MagicMock())
    assert seen[0]["state"]["proxy_headers"] == build_headers(EMAIL_HEADER, WORKSPACE_HEADER)
    assert "dapi1" not in repr(seen)
