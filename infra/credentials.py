"""Hash passwords, sign access tokens, encrypt stored secrets, and generate random ones."""

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
    """Return 256 random bits after a prefix that names their purpose."""
    return prefix + secrets.token_urlsafe(32)


def hash_token(token: str) -> bytes:
    """Return the SHA-256 of a token. A random 256-bit token cannot be guessed, so it needs no slow hash."""
    return hashlib.sha256(token.encode()).digest()


def is_same_digest(left: bytes, right: bytes) -> bool:
    """Return whether two digests are equal, in constant time."""
    return hmac.compare_digest(left, right)


class Vault:
    """Encrypt data that the database stores (Fernet: AES-128-CBC and HMAC-SHA256)."""

    def __init__(self, secret: str) -> None:
        self._fernet = _derive_fernet(secret, b"paddock vault")

    def seal(self, data: bytes) -> bytes:
        """Encrypt data with the secret key."""
        return self._fernet.encrypt(data)

    def open(self, sealed: bytes) -> bytes:
        """Decrypt data. Errors: `ValueError` if the secret key has changed."""
        try:
            return self._fernet.decrypt(sealed)
        except InvalidToken:
            raise ValueError("encrypted with another PADDOCK_SECRET_KEY") from None


class Keyring:
    """Encrypt the tenants' provider keys and secrets, with keys that can be rotated while the system runs.

    The first of `keys` encrypts, each of them decrypts. A key derived from `secret` decrypts older data, and encrypts
    if `keys` is empty. What one keyring encrypts, no keyring of another purpose decrypts.
    """

    def __init__(self, keys: tuple[Secret, ...], secret: str, purpose: bytes = b"paddock keyring") -> None:
        self._all = [_derive_fernet(key.reveal(), purpose) for key in keys]
        self._all.append(_derive_fernet(secret, purpose + b" of the secret key"))
        self._fernets = MultiFernet(self._all)
        self._fingerprint_key = hmac.digest(secret.encode(), b"paddock fingerprints", "sha256")

    def seal(self, data: bytes) -> bytes:
        """Encrypt data with the first key."""
        return self._fernets.encrypt(data)

    def open(self, sealed: bytes) -> bytes:
        """Decrypt data. Errors: `ValueError` if none of the keys encrypted it."""
        try:
            return self._fernets.decrypt(sealed)
        except InvalidToken:
            raise ValueError("encrypted with a key that is missing in PADDOCK_ENCRYPTION_KEYS") from None

    def fingerprint(self, data: bytes) -> bytes:
        """Return a hash by which data is recognized, and from which it can be guessed only with the secret key."""
        return hmac.digest(self._fingerprint_key, data, "sha256")

    def reseal(self, sealed: bytes) -> bytes | None:
        """Encrypt data again with the first key; return None if it already is. Errors: `ValueError` as `open`."""
        try:
            self._all[0].decrypt(sealed)
        except InvalidToken:
            return self.seal(self.open(sealed))
        return None


def _derive_fernet(secret: str, purpose: bytes) -> Fernet:
    return Fernet(base64.urlsafe_b64encode(hmac.digest(secret.encode(), purpose, "sha256")))


class Passwords:
    """Hash passwords with argon2id in threads, two at a time: each takes 64 MiB and tens of milliseconds."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher()
        self._slots = asyncio.Semaphore(2)
        self._dummy_hash = _build_dummy_hash(self._hasher)

    async def hash_password(self, password: str) -> str:
        """Return a hash that contains its parameters."""
        async with self._slots:
            return await asyncio.to_thread(self._hasher.hash, password)

    async def verify_password(self, stored: str | None, password: str) -> bool:
        """Return whether the password is correct. Without a stored hash it is not, after the same time."""
        async with self._slots:
            return (
                await asyncio.to_thread(self._verify_hash, stored or self._dummy_hash, password) and stored is not None
            )

    def _verify_hash(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False


def _build_dummy_hash(hasher: PasswordHasher) -> str:
    """Return a hash of no known password with the parameters of `hasher`. Verifying it takes as long as any other."""
    salt, digest = (
        base64.b64encode(secrets.token_bytes(length)).decode().rstrip("=")
        for length in (hasher.salt_len, hasher.hash_len)
    )
    return f"$argon2id$v=19$m={hasher.memory_cost},t={hasher.time_cost},p={hasher.parallelism}${salt}${digest}"


class AccessTokens:
    """Issue and read signed, short-lived bearer tokens. They name a session, which can be ended at any time."""

    def __init__(self, secret: str, lifetime: timedelta, algorithm: str = "HS256") -> None:
        self._algorithm = algorithm
        # A separate key, so that these signatures are useless for other uses of the secret.
        # It is as long as the hash (RFC 7518 section 3.2).
        self._key = hmac.digest(secret.encode(), b"paddock access tokens", f"sha{algorithm.removeprefix('HS')}")
        self.lifetime = lifetime

    def issue_token(self, user_id: str, session_id: str, now: datetime) -> str:
        """Return a token for a session of a user."""
        claims = {"sub": user_id, "sid": session_id, "iat": int(now.timestamp()), "exp": now + self.lifetime}
        return jwt.encode(claims, self._key, self._algorithm)

    def read_token(self, token: str) -> tuple[str, str] | None:
        """Return `(user_id, session_id)`, or None for a forged, malformed or expired token."""
        try:
            claims: dict[str, Any] = jwt.decode(
                token, self._key, [self._algorithm], options={"require": ["sub", "sid", "exp"]}
            )
        except jwt.InvalidTokenError:
            return None
        return str(claims["sub"]), str(claims["sid"])
