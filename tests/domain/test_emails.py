"""Test that e-mail addresses that look alike are normalized to one address."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.accounts import Login, check_email, check_username, normalize_email, read_login_name
from domain.shared.errors import DomainError


@pytest.mark.parametrize(
    ("written", "normalized"),
    [
        ("Ada@Example.COM", "ada@example.com"),
        ("ａｄａ@example.com", "ada@example.com"),
        ("ada＠example.com", "ada@example.com"),
        ("ada@ｅｘａｍｐｌｅ．com", "ada@example.com"),
        ("ada@example。com", "ada@example.com"),
        ("𝐚𝐝𝐚@example.com", "ada@example.com"),
        ("STRASSE@example.com", "strasse@example.com"),
        ("straße@example.com", "strasse@example.com"),
        ("ﬁn@example.com", "fin@example.com"),
        ("ada@BÜCHER.example", "ada@bücher.example"),
        ("ada@xn--bcher-kva.example", "ada@bücher.example"),
        ("ada@XN--BCHER-KVA.example", "ada@bücher.example"),
        ("cafe\u0301@example.com", "café@example.com"),
        ("иван@пример.рф", "иван@пример.рф"),
        ("иван@xn--e1afmkfd.xn--p1ai", "иван@пример.рф"),
        # A domain that DNS does not allow is kept, but folded.
        ("ada@under_score.Example", "ada@under_score.example"),
        ("ada@localhost", "ada@localhost"),
        ("a+b.c@example.com", "a+b.c@example.com"),
    ],
)
def test_spellings_of_an_address_are_normalized(written: str, normalized: str) -> None:
    assert check_email(written) == normalize_email(written) == normalized
    assert read_login_name(Login(password="x", email=written)) == normalized
    assert read_login_name(Login(password="x", username=written, email=normalized)) == normalized


@pytest.mark.parametrize(
    "address",
    [
        *(
            "",
            "ada",
            "ada@",
            "@example.com",
            "a@b@c",
            "ada @example.com",
            "ada@exam ple.com",
            "a" * 65 + "@example.com",
        ),
        # Invisible characters, or a change of direction.
        *(
            "ada\u200b@example.com",
            "ada\u00ad@example.com",
            "\u202eada@example.com",
            "ada\ufeff@example.com",
            "ada\x00@e.com",
        ),
        # Cyrillic and Greek letters among Latin ones.
        *("аdа@example.com", "admin@ехample.com", "αda@example.com", "pаypal@example.com"),
    ],
)
def test_invalid_and_lookalike_addresses_are_refused(address: str) -> None:
    with pytest.raises(DomainError) as error:
        check_email(address)
    assert error.value.errors[0].field == "email"


def test_username_may_be_the_users_own_address_in_any_spelling() -> None:
    assert check_username("ａda@example.com", "ada@example.com") == "ada@example.com"
    assert check_username("Ada@Example.com", "ada@example.com") == "Ada@Example.com"
    with pytest.raises(DomainError):
        check_username("eve@example.com", "ada@example.com")


@given(st.emails() | st.text(max_size=30))
def test_normalization_is_idempotent(text: str) -> None:
    assert normalize_email(normalize_email(text)) == normalize_email(text)
