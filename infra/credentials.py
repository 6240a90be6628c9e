"""Passwords, access tokens and random secrets."""

import asyncio
import base64
import hashlib
import hmac
import secrets
from datetime import datetime, timedelta
from typing import Any, Final

import jwt
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from domain.shared.secrets import Secret

API_KEY_PREFIX: Final = "pdk_"


def generate_token(prefix: str) -> str:
    """256 random bits behind a prefix that tells what they are for."""
    return prefix + secrets.token_urlsafe(32)


def hash_token(token: str) -> bytes:
    """SHA-256. A random 256-bit token needs no slow hash: there is nothing to guess."""
    return hashlib.sha256(token.encode()).digest()


def is_same_digest(left: bytes, right: bytes) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(left, right)


class Vault:
    """Seals what must lie in the database but not in the clear (Fernet: AES-128-CBC and HMAC-SHA256)."""

    def __init__(self, secret: str) -> None:
        self._fernet = _fernet(secret, b"paddock vault")

    def seal(self, data: bytes) -> bytes:
        """Data that only a holder of the secret key can read."""
        return self._fernet.encrypt(data)

    def open(self, sealed: bytes) -> bytes:
        """What was sealed. Errors: `ValueError` when the secret key is another one now."""
        try:
            return self._fernet.decrypt(sealed)
        except InvalidToken:
            raise ValueError("sealed with another PADDOCK_SECRET_KEY") from None


class Keyring:
    """Seals the keys of tenants for outside services, with keys that can be replaced while everything runs.

    The first of `keys` seals, each of them opens. What was sealed before there were any, with a key made of
    `secret`, still opens, and so seals where there are none.
    """

    def __init__(self, keys: tuple[Secret, ...], secret: str) -> None:
        self._all = [_fernet(key.reveal(), b"paddock keyring") for key in keys]
        self._all.append(_fernet(secret, b"paddock keyring of the secret key"))
        self._fernets = MultiFernet(self._all)

    def seal(self, data: bytes) -> bytes:
        """Data that only a holder of the first key can read."""
        return self._fernets.encrypt(data)

    def open(self, sealed: bytes) -> bytes:
        """What was sealed. Errors: `ValueError` when none of the keys did it."""
        try:
            return self._fernets.decrypt(sealed)
        except InvalidToken:
            raise ValueError("sealed with a key that PADDOCK_ENCRYPTION_KEYS does not hold") from None

    def reseal(self, sealed: bytes) -> bytes | None:
        """The same sealed with the first key, or None if it is already. Errors: `ValueError` as `open`."""
        try:
            self._all[0].decrypt(sealed)
        except InvalidToken:
            return self.seal(self.open(sealed))
        return None


def _fernet(secret: str, use: bytes) -> Fernet:
    return Fernet(base64.urlsafe_b64encode(hmac.digest(secret.encode(), use, "sha256")))


class Passwords:
    """argon2id, off the event loop, two at a time: each takes 64 MiB and tens of milliseconds."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher()
        self._turn = asyncio.Semaphore(2)
        self._nobody = self._hasher.hash(secrets.token_urlsafe(16))

    async def hash_password(self, password: str) -> str:
        """A hash that carries its own parameters."""
        async with self._turn:
            return await asyncio.to_thread(self._hasher.hash, password)

    async def verify_password(self, stored: str | None, password: str) -> bool:
        """Whether the password is right. With nothing stored it takes as long, and is wrong."""
        async with self._turn:
            return await asyncio.to_thread(self._check, stored or self._nobody, password) and stored is not None

    def _check(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False


class AccessTokens:
    """Signed, short-lived bearer tokens. They name a session, which can be ended at any time."""

    def __init__(self, secret: str, lifetime: timedelta, algorithm: str = "HS256") -> None:
        self._algorithm = algorithm
        # A key of its own, so that the secret's other uses and these signatures cannot be played against each other.
        # As long as the hash, as RFC 7518 section 3.2 wants it.
        self._key = hmac.digest(secret.encode(), b"paddock access tokens", f"sha{algorithm.removeprefix('HS')}")
        self.lifetime = lifetime

    def issue_token(self, user_id: str, session_id: str, now: datetime) -> str:
        """A token for one session of one user."""
        claims = {"sub": user_id, "sid": session_id, "iat": int(now.timestamp()), "exp": now + self.lifetime}
        return jwt.encode(claims, self._key, self._algorithm)

    def read_token(self, token: str) -> tuple[str, str] | None:
        """`(user_id, session_id)`, or None for a token that is forged, malformed or too old."""
        try:
            claims: dict[str, Any] = jwt.decode(
                token, self._key, [self._algorithm], options={"require": ["sub", "sid", "exp"]}
            )
        except jwt.InvalidTokenError:
            return None
        return str(claims["sub"]), str(claims["sid"])
