"""E-mail addresses that look alike are one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.accounts import Login, check_email, check_username, normalize_email, read_login_name
from domain.shared.errors import DomainError


@pytest.mark.parametrize(
    ("written", "one"),
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
        # What DNS would not have is left as it is, but folded.
        ("ada@under_score.Example", "ada@under_score.example"),
        ("ada@localhost", "ada@localhost"),
        ("a+b.c@example.com", "a+b.c@example.com"),
    ],
)
def test_an_address_has_one_form(written: str, one: str) -> None:
    assert check_email(written) == normalize_email(written) == one
    assert read_login_name(Login(password="x", email=written)) == one
    assert read_login_name(Login(password="x", username=written, email=one)) == one


@pytest.mark.parametrize(
    "wrong",
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
        # Invisible, or turned around.
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
def test_what_is_none_or_only_looks_like_one_is_refused(wrong: str) -> None:
    with pytest.raises(DomainError) as error:
        check_email(wrong)
    assert error.value.errors[0].field == "email"


def test_a_user_name_may_be_one_s_own_address_however_it_is_written() -> None:
    assert check_username("ａda@example.com", "ada@example.com") == "ada@example.com"
    assert check_username("Ada@Example.com", "ada@example.com") == "Ada@Example.com"
    with pytest.raises(DomainError):
        check_username("eve@example.com", "ada@example.com")


@given(st.emails() | st.text(max_size=30))
def test_the_form_is_its_own_form(text: str) -> None:
    assert normalize_email(normalize_email(text)) == normalize_email(text)
