"""The headers of a trusted proxy, read without a system: whom they name, and what they cannot name."""

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
from tests.journeys.test_settings_of_the_documents import MINIMAL

TRUSTED = ("10.0.0.0/8", "fd00::7")
WORKSPACE = ("X-Databricks-Org-Id", "1653573648247579")


def settings(**values: str) -> Settings:
    on = {"PADDOCK_PROXY_LOGIN": "databricks", "PADDOCK_TRUSTED_PROXIES": ",".join(TRUSTED)}
    return read_settings({**MINIMAL, **on, **values})


def headers(*pairs: tuple[str, str | bytes]) -> ProxyHeaders:
    return tuple((k.lower().encode(), v if isinstance(v, bytes) else v.encode()) for k, v in pairs)


def login(*pairs: tuple[str, str | bytes], **values: str) -> ProxyLogin | None:
    return read_login(headers(*pairs), settings(**values))


def refusal(*pairs: tuple[str, str | bytes], **values: str) -> DomainError:
    with pytest.raises(DomainError) as caught:
        login(*pairs, **values)
    return caught.value


def test_all_that_a_proxy_says() -> None:
    found = login(
        ("X-Forwarded-Email", " Ada@Example.COM "),
        ("X-Forwarded-User", "4711@1653573648247579"),
        ("X-Forwarded-Preferred-Username", "Ada Löve"),
        WORKSPACE,
    )
    assert found == ProxyLogin(
        workspace="1653573648247579",
        email="ada@example.com",
        external_id="4711@1653573648247579",
        full_name="Ada Löve",
    )
    assert found is not None
    assert found.tenant_id == "workspace-1653573648247579"


@pytest.mark.parametrize(
    "pairs",
    [
        (),
        (WORKSPACE,),
        (("X-Forwarded-Email", ""), WORKSPACE),
        (("X-Forwarded-Email", "  "), ("X-Forwarded-User", ""), WORKSPACE),
        (("X-Forwarded-Preferred-Username", "ada"), ("X-Forwarded-Access-Token", "dapi1"), WORKSPACE),
    ],
)
def test_who_is_not_named_is_nobody(pairs: tuple[tuple[str, str], ...]) -> None:
    assert login(*pairs) is None


@pytest.mark.parametrize(
    ("pairs", "said"),
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
def test_nonsense_is_refused_and_the_header_named(pairs: tuple[tuple[str, Any], ...], said: str) -> None:
    error = refusal(*pairs, WORKSPACE)
    assert error.code == "unauthenticated"
    assert said in error.detail
    assert "X-Forwarded-" in error.detail


@pytest.mark.parametrize("name", ["x" * 201, "a\x1b[31m", b"\xff", ""])
def test_a_name_that_cannot_be_read_is_left_out(name: str | bytes) -> None:
    found = login(("X-Forwarded-Email", "a@example.com"), ("X-Forwarded-Preferred-Username", name), WORKSPACE)
    assert found is not None
    assert found.full_name is None


EMAIL = ("X-Forwarded-Email", "a@example.com")


def test_the_workspace_is_the_header_s_or_the_installation_s() -> None:
    for own in ("PADDOCK_PROXY_WORKSPACE", "DATABRICKS_WORKSPACE_ID"):
        found = login(EMAIL, **{own: "7"})
        assert found is not None
        assert found.workspace == "7"
        # What a client may have sent through the proxy does not lead to another one.
        assert "another workspace" in refusal(EMAIL, WORKSPACE, **{own: "7"}).detail
        assert login(EMAIL, ("X-Databricks-Org-Id", "7"), **{own: "7"}) == found
    assert "names no workspace" in refusal(EMAIL).detail
    for bad in ("A", "../x", "a b", "-1", "ü", "x" * 54, "a.b"):
        assert "X-Databricks-Org-Id" in refusal(EMAIL, ("X-Databricks-Org-Id", bad)).detail
    assert "was sent 2 times" in refusal(EMAIL, WORKSPACE, WORKSPACE).detail


@pytest.mark.parametrize(
    ("origin", "host", "forwarded_host", "is_let_in"),
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
def test_pages_of_other_origins_sign_nobody_in(
    origin: str, host: str, forwarded_host: str | None, is_let_in: bool
) -> None:
    sent = [EMAIL, WORKSPACE, ("Origin", origin), ("Host", host)]
    if forwarded_host is not None:
        sent.append(("X-Forwarded-Host", forwarded_host))
    if is_let_in:
        assert login(*sent, CORS_ORIGINS="https://front.example.com") is not None
    else:
        assert refusal(*sent, CORS_ORIGINS="https://front.example.com").code == "forbidden"


@pytest.mark.parametrize(
    ("peer", "is_believed"),
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
def test_only_the_peer_itself_is_believed(peer: Any, is_believed: bool) -> None:
    sent = headers(EMAIL, WORKSPACE, ("X-Forwarded-For", "10.1.2.3"))
    scope: Any = {"type": "http", "client": peer, "headers": list(sent)}
    trusted = parse_networks(TRUSTED, "trusted_proxies")
    assert select_headers(scope, trusted, settings()) == (sent if is_believed else None)
    assert select_headers(scope, trusted, settings(PADDOCK_PROXY_LOGIN="off")) is None


def test_the_credential_for_databricks_goes_no_further() -> None:
    scope: Any = {
        "headers": [(b"x-forwarded-access-token", b"dapi1"), (b"host", b"a"), (b"x-forwarded-access-token", b"")]
    }
    remove_credential(scope)
    assert scope["headers"] == [(b"host", b"a")]


def test_it_does_not_start_without_a_trusted_proxy() -> None:
    with pytest.raises(SettingsError, match="PADDOCK_PROXY_LOGIN=databricks needs PADDOCK_TRUSTED_PROXIES"):
        settings(PADDOCK_TRUSTED_PROXIES="")
    with pytest.raises(SettingsError, match="PADDOCK_PROXY_LOGIN must be one of off, databricks"):
        settings(PADDOCK_PROXY_LOGIN="on")
    with pytest.raises(SettingsError, match="PADDOCK_PROXY_WORKSPACE must be 1 to 53"):
        settings(PADDOCK_PROXY_WORKSPACE="My Workspace")
    # What another system set does not matter while sign-in is off.
    assert read_settings({**MINIMAL, "DATABRICKS_WORKSPACE_ID": "My Workspace"}).proxy_login == "off"


def user(**fields: Any) -> ProxyUser:
    known = {"user_id": "u", "tenant_id": "workspace-1", "role": "member", "is_active": True, "plan": "standard"}
    return ProxyUser(**{**known, "email": "a@x.com", "external_id": "7", "has_password": False, **fields})


def test_which_account_a_login_names() -> None:
    by_id = ProxyLogin(workspace="1", email="a@x.com", external_id="7")
    by_email = ProxyLogin(workspace="1", email="a@x.com")
    same, renamed, unbound = user(), user(email="old@x.com"), user(external_id=None)
    other = user(user_id="o", external_id="8")
    assert select_proxy_user(by_id, []) is None
    assert select_proxy_user(by_email, [same]) is same
    for found, candidates in ((same, [same]), (renamed, [renamed]), (renamed, [other, renamed]), (unbound, [unbound])):
        assert select_proxy_user(by_id, candidates) is found
    assert not has_login_changed(by_id, same, [same])
    assert not has_login_changed(by_email, unbound, [unbound])
    assert has_login_changed(by_id, renamed, [renamed])
    assert has_login_changed(by_id, unbound, [unbound])
    # An address that somebody else has stays where it is.
    assert not has_login_changed(by_id, renamed, [other, renamed])
    for refused in (other, user(tenant_id="acme"), user(external_id=None, has_password=True)):
        with pytest.raises(DomainError) as caught:
            select_proxy_user(by_id, [refused])
        assert caught.value.code == "forbidden"
    with pytest.raises(DomainError):
        select_proxy_user(by_email, [user(tenant_id="workspace-2")])


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["x-forwarded-email", "x-forwarded-user", "x-databricks-org-id", "origin"]),
            st.binary(max_size=40),
        )
    )
)
def test_any_bytes_name_somebody_or_are_refused(pairs: list[tuple[str, bytes]]) -> None:
    try:
        found = read_login(headers(*pairs), SETTINGS)
    except DomainError as error:
        assert error.code in ("unauthenticated", "forbidden")
    else:
        assert found is None or "@" in found.email


SETTINGS = settings()


async def test_the_app_behind_the_middleware_does_not_see_the_credential() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)

    services: Any = SimpleNamespace(settings=settings(), clock=lambda: datetime.now(UTC), metrics=MagicMock())
    trusted = parse_networks(TRUSTED, "trusted_proxies")
    middleware = RequestMiddleware(
        app, lambda: services, KeyUsageWriter(), trusted, ConnectionBounds(services.settings, trusted)
    )
    sent = [*headers(EMAIL, WORKSPACE), (b"x-forwarded-access-token", b"dapi1")]
    scope: Any = {"type": "http", "method": "GET", "path": "/health", "client": ("10.0.0.1", 1), "headers": sent}
    await middleware(scope, MagicMock(), MagicMock())
    assert seen[0]["state"]["proxy_headers"] == headers(EMAIL, WORKSPACE)
    assert "dapi1" not in repr(seen)
