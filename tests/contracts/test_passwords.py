"""Passwords are hashed and verified; a login without a user takes as long as one with a user."""

from argon2 import PasswordHasher, extract_parameters

from infra.credentials import Passwords


async def test_password_is_verified_by_its_hash() -> None:
    passwords = Passwords()
    stored = await passwords.hash_password("correct horse")
    assert await passwords.verify_password(stored, "correct horse")
    assert not await passwords.verify_password(stored, "battery staple")
    assert not await passwords.verify_password("not a hash", "correct horse")


async def test_login_without_a_user_takes_as_long_as_with_one(monkeypatch) -> None:
    verified: list[tuple[str, str]] = []
    passwords = Passwords()
    monkeypatch.setattr(passwords, "_verify_hash", lambda stored, password: verified.append((stored, password)) or True)
    assert not await passwords.verify_password(None, "guess")
    ((dummy_hash, password),) = verified
    assert password == "guess"
    assert extract_parameters(dummy_hash) == extract_parameters(PasswordHasher().hash("a password"))
