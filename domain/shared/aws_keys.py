"""Read keys of AWS: an API key of Bedrock, or an access key that signs each request.

A provider key is one text, so an access key is written `ACCESS_KEY_ID:SECRET_ACCESS_KEY`, and a temporary one
`ACCESS_KEY_ID:SECRET_ACCESS_KEY:SESSION_TOKEN`. None of the three can contain a colon.
"""

import re
from typing import Final

import msgspec

AWS_KEY_FORMS: Final = "an API key of Bedrock, or ACCESS_KEY_ID:SECRET_ACCESS_KEY, or these two and :SESSION_TOKEN"
_ACCESS_KEY_ID_PATTERN: Final = re.compile(r"A[A-Z0-9]{15,127}")
_SECRET_PATTERN: Final = re.compile(r"[A-Za-z0-9/+=]{16,128}")
_TOKEN_PATTERN: Final = re.compile(r"[A-Za-z0-9/+=_.~-]{16,}")
# AWS begins the ids of temporary keys so.
_TEMPORARY_PREFIX: Final = "ASIA"


class AwsKey(msgspec.Struct, frozen=True, kw_only=True):
    """Hold an access key, or else a `bearer` token. Its repr shows nothing of it."""

    access_key_id: str = ""
    secret_access_key: str = ""
    session_token: str | None = None
    bearer: str | None = None

    def __repr__(self) -> str:
        return "AwsKey()"

    def list_secrets(self) -> tuple[str, ...]:
        """Return the parts that must not be shown."""
        return tuple(part for part in (self.secret_access_key, self.session_token, self.bearer) if part)


class InvalidAwsKey(ValueError):
    """Report why a text is not a key of AWS. The message does not contain the text."""


def parse_aws_key(text: str) -> AwsKey:
    """Return the key that a text is. Errors: `InvalidAwsKey`."""
    if ":" not in text:
        if _ACCESS_KEY_ID_PATTERN.fullmatch(text) and text.startswith(("AKIA", _TEMPORARY_PREFIX)):
            raise InvalidAwsKey("is an access key id without its secret.")
        if not _TOKEN_PATTERN.fullmatch(text):
            raise InvalidAwsKey("is not a key of AWS.")
        return AwsKey(bearer=text)
    access_key_id, secret_access_key, *rest = text.split(":")
    if not _ACCESS_KEY_ID_PATTERN.fullmatch(access_key_id):
        raise InvalidAwsKey("does not begin with an access key id like AKIA….")
    if not _SECRET_PATTERN.fullmatch(secret_access_key):
        raise InvalidAwsKey("has a secret access key that cannot be one.")
    if len(rest) > 1 or (rest and not _TOKEN_PATTERN.fullmatch(rest[0])):
        raise InvalidAwsKey("has a session token that cannot be one.")
    if not rest and access_key_id.startswith(_TEMPORARY_PREFIX):
        raise InvalidAwsKey("is a temporary key (ASIA…) without its session token.")
    return AwsKey(
        access_key_id=access_key_id,
        secret_access_key=secret_access_key,
        session_token=rest[0] if rest else None,
    )
