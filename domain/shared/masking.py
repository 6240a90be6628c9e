"""Mask the values of secrets in text, JSON and streams, with the forms into which programs turn them.

A form is a value itself, each longer line of it, each longer text of a value that is JSON, and all these as JSON,
Python and URLs escape them; and the value in base64 at any place of a longer text. Values that a program encodes
otherwise, or shows in part, are not found: masking prevents accidents, and does not hold an agent that wants to tell.
"""

import base64
import functools
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, AnyStr, Final, Generic
from urllib.parse import quote, quote_plus, unquote, urlsplit

import msgspec

_MASK_CHARACTERS: Final = "*•█"
# A shorter value could not be masked without destroying other text.
MIN_SECRET_CHARACTERS: Final = 4
# Lines and other parts of a value that are shorter are not masked by themselves: `{` is not a secret.
MIN_PART_CHARACTERS: Final = 8
# Columns after which programs break base64: MIME and PEM.
_BASE64_COLUMNS: Final = (76, 64)
# What browsers and clients leave unescaped in URLs, besides letters, digits and `_.-~`.
_SAFE_CHARACTERS: Final = ("", "/", "!'()*", "/:@!$&'()*+,;=")
_URLSAFE_ALPHABET: Final = str.maketrans("+/", "-_")
_UNICODE_ESCAPE: Final = re.compile(r"\\u[0-9a-f]{4}")
# No program escapes these characters.
_PLAIN_TEXT: Final = re.compile(r"[A-Za-z0-9_.~-]*")
_MAX_ESCAPED_CHARACTERS: Final = 8192
# Characters of all forms that the matcher looks at first.
_MAX_WINDOW: Final = 16
# A stream that holds back more than this collects what comes, rather than looking at all of it for each byte.
_MAX_EAGER_BYTES: Final = 4096


class SecretMask:
    """Mask the values of one run's secrets. Compiled once, from values of `MIN_SECRET_CHARACTERS` or more."""

    def __init__(self, values: Iterable[str]) -> None:
        forms = {form for value in values for form in list_secret_forms(value)}
        self.replacement = _choose_replacement(forms)
        self._text_matcher = _FormMatcher[str](forms)
        self._forms = forms

    @functools.cached_property
    def _byte_matcher(self) -> "_FormMatcher[bytes]":
        return _FormMatcher[bytes]({form.encode() for form in self._forms})

    def __repr__(self) -> str:
        return "SecretMask()"

    def mask_text(self, text: str) -> str:
        """Return the text without the secrets."""
        return self._text_matcher.replace_matches(text, self.replacement)

    def mask_cut_text(self, text: str) -> str:
        """Return a text that was cut at its end, without the secrets and without the beginning of one there."""
        spans, end = self._text_matcher.find_spans(text)
        masked = _replace_spans(text[:end], spans, self.replacement)
        return masked if end == len(text) else masked + self.replacement

    def mask_value(self, value: Any) -> Any:
        """Return a JSON value without the secrets: in texts, keys and numbers."""
        if isinstance(value, str):
            return self.mask_text(value)
        if isinstance(value, dict):
            return self._mask_object(value)
        if isinstance(value, list | tuple):
            return [self.mask_value(item) for item in value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            text = str(value)
            return value if self.mask_text(text) == text else self.replacement
        return value

    def mask_json(self, data: bytes) -> bytes:
        """Return JSON without the secrets; the same bytes if it holds none. Errors: `msgspec.DecodeError`."""
        if b"\\" not in data and not self._byte_matcher.has_match(data):
            return data
        value = msgspec.json.decode(data)
        masked = self.mask_value(value)
        encoded = data if masked == value else msgspec.json.encode(masked)
        if self._byte_matcher.has_match(encoded):
            # The syntax of JSON is part of a secret, which is JSON itself.
            encoded = msgspec.json.encode(self._mask_containers(masked))
        return encoded

    def open_stream(self) -> "SecretStream":
        """Return a mask for one stream of bytes that comes in pieces."""
        return SecretStream(self._byte_matcher, self.replacement.encode())

    def _mask_object(self, value: dict[str, Any]) -> dict[str, Any]:
        masked: dict[str, Any] = {}
        for key, item in value.items():
            name = masked_name = self.mask_text(key) if isinstance(key, str) else key
            number = 1
            while masked_name in masked:
                number += 1
                masked_name = f"{name} ({number})"
            masked[masked_name] = self.mask_value(item)
        return masked

    def _mask_containers(self, value: Any) -> Any:
        """Return a value in which the innermost lists and objects whose JSON holds a secret are masked whole."""
        if isinstance(value, dict):
            value = {key: self._mask_containers(item) for key, item in value.items()}
        elif isinstance(value, list):
            value = [self._mask_containers(item) for item in value]
        return self.replacement if self._byte_matcher.has_match(msgspec.json.encode(value)) else value


class SecretStream:
    """Mask a stream of bytes. What may be the beginning of a secret is held back until it is clear whether it is."""

    def __init__(self, matcher: "_FormMatcher[bytes]", replacement: bytes) -> None:
        self._matcher, self._replacement = matcher, replacement
        self._held = b""
        self._collected: list[bytes] = []

    def mask_piece(self, piece: bytes) -> bytes:
        """Return what is safe to pass on after a piece has come."""
        self._collected.append(piece)
        if len(self._held) > _MAX_EAGER_BYTES and sum(map(len, self._collected)) < len(self._held):
            return b""
        return self.release_bytes()

    def release_bytes(self) -> bytes:
        """Return what is safe to pass on by now."""
        if not self._collected:
            return b""
        data = b"".join((self._held, *self._collected))
        self._collected.clear()
        spans, end = self._matcher.find_spans(data)
        self._held = data[end:]
        return _replace_spans(data[:end], spans, self._replacement)

    def flush_bytes(self) -> bytes:
        """Return the rest, as nothing more will come."""
        data, self._held = b"".join((self._held, *self._collected)), b""
        self._collected.clear()
        return self._matcher.replace_matches(data, self._replacement)


class _FormMatcher(Generic[AnyStr]):
    """Find any of many texts in another: at most places it looks at two or three characters and skips several.

    The algorithm is that of Wu and Manber ("A fast algorithm for multi-pattern searching", 1994).
    """

    def __init__(self, forms: Iterable[AnyStr]) -> None:
        ordered: list[AnyStr] = sorted(forms, key=len, reverse=True)
        window = min([_MAX_WINDOW, *map(len, ordered)])
        self._window, self._block = window, min(window, 3 if window >= MIN_PART_CHARACTERS else 2)
        self._forms_by_window: dict[AnyStr, list[AnyStr]] = {}
        self._shifts: dict[AnyStr, int] = {}
        # Beginnings of forms that are shorter than the window.
        self._beginnings: set[AnyStr] = set()
        for form in ordered:
            beginning = form[:window]
            self._forms_by_window.setdefault(beginning, []).append(form)
            self._beginnings.update(beginning[:length] for length in range(1, window))
            for end in range(self._block, window + 1):
                block = form[end - self._block : end]
                self._shifts[block] = min(self._shifts.get(block, window), window - end)

    def find_spans(self, text: AnyStr, is_whole: bool = False) -> tuple[list[tuple[int, int]], int]:
        """Return the places of forms, and where a form may begin that is not complete: the text's end if nowhere.

        Of forms that overlap the first one counts, and the longest that begins there. No form is incomplete in a whole
        text.
        """
        size, window, block = len(text), self._window, self._block
        get_shift, default_shift = self._shifts.get, window - block + 1
        spans: list[tuple[int, int]] = []
        position, last = 0, size - window
        while position <= last:
            shift = get_shift(text[position + window - block : position + window], default_shift)
            if shift:
                position += shift
                continue
            end = position
            for form in self._forms_by_window.get(text[position : position + window], ()):
                if text.startswith(form, position):
                    end = position + len(form)
                    spans.append((position, end))
                    break
                if not is_whole and position + len(form) > size and form.startswith(text[position:]):
                    return spans, position
            position = max(end, position + 1)
        if not is_whole:
            for start in range(position, size):
                if text[start:] in self._beginnings:
                    return spans, start
        return spans, size

    def has_match(self, text: AnyStr) -> bool:
        """Return whether a whole text holds a form."""
        return bool(self.find_spans(text, is_whole=True)[0])

    def replace_matches(self, text: AnyStr, replacement: AnyStr) -> AnyStr:
        """Return a whole text with each form replaced."""
        return _replace_spans(text, self.find_spans(text, is_whole=True)[0], replacement)


def list_secret_forms(value: str) -> set[str]:
    """Return all forms of a value that are masked. Each has at least `MIN_SECRET_CHARACTERS` characters."""
    core = value.strip()
    forms = {form for text in {core, *_list_parts(core)} for form in _list_escaped_forms(text)}
    for encoded in _list_base64_forms(core.encode()):
        forms |= {encoded, quote(encoded, safe=""), _lower_hexadecimal(quote(encoded, safe=""))}
    return {form for form in forms if len(form) >= MIN_SECRET_CHARACTERS}


def _list_parts(core: str) -> set[str]:
    """Return the lines of a value, the texts in it if it is JSON, and the password if it is a URL; no short ones."""
    texts = {core, core.strip("\"'"), *_list_json_texts(core), *_list_passwords(core)}
    lines = {line.strip() for text in texts for line in text.splitlines()}
    return {text for text in {*texts, *lines} if len(text) >= MIN_PART_CHARACTERS}


def _list_json_texts(core: str) -> set[str]:
    if core[:1] not in ("{", "["):
        return set()
    try:
        pending = [msgspec.json.decode(core)]
    except (msgspec.MsgspecError, RecursionError):
        return set()
    texts: set[str] = set()
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list):
            pending += value
        elif value is not None and not isinstance(value, bool):
            texts.add(str(value).strip())
    return texts


def _list_passwords(core: str) -> set[str]:
    try:
        password = urlsplit(core).password if "://" in core else None
    except ValueError:
        return set()
    return set() if not password else {password, unquote(password)}


def _list_escaped_forms(text: str) -> Iterator[str]:
    yield text
    if _PLAIN_TEXT.fullmatch(text) or ("\n" in text and len(text) > _MAX_ESCAPED_CHARACTERS):
        # Each line of a longer value is masked in these forms.
        return
    for quoted in (_escape_json(text, False), _escape_json(text, True), text.replace("/", "\\/"), repr(text)[1:-1]):
        yield quoted
        # JSON within JSON, as in the log of a request.
        yield _escape_json(quoted, False)
    yield _UNICODE_ESCAPE.sub(lambda match: match[0].upper().replace("U", "u", 1), _escape_json(text, True))
    yield repr(text.encode())[2:-1]
    for safe in _SAFE_CHARACTERS:
        yield quote(text, safe=safe)
        yield _lower_hexadecimal(quote(text, safe=safe))
    yield quote_plus(text)
    yield _lower_hexadecimal(quote_plus(text))


def _escape_json(text: str, ascii_only: bool) -> str:
    return json.dumps(text, ensure_ascii=ascii_only)[1:-1]


def _lower_hexadecimal(quoted: str) -> str:
    """Return a quoted text with its escapes in lower case: `%2f`."""
    first, *rest = quoted.split("%")
    return "".join([first, *(f"%{part[:2].lower()}{part[2:]}" for part in rest)])


def _list_base64_forms(data: bytes) -> Iterator[str]:
    """Yield what base64 makes of bytes at any place of others: the characters that depend on these bytes alone."""
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + data).decode()
        core = encoded[-(-before * 8 // 6) : (before + len(data)) * 8 // 6]
        yield core
        yield core.translate(_URLSAFE_ALPHABET)
    encoded = base64.b64encode(data).decode()
    for columns in _BASE64_COLUMNS:
        if len(encoded) > columns:
            lines = [encoded[start : start + columns].rstrip("=") for start in range(0, len(encoded), columns)]
            yield from (line for line in lines if len(line) >= MIN_PART_CHARACTERS)


def _choose_replacement(forms: set[str]) -> str:
    """Return a mask of characters that no form holds, so that masking one secret does not make up another."""
    used = {character for form in forms for character in form}
    candidates = itertools.chain(_MASK_CHARACTERS, map(chr, range(0x2580, 0xD800)))
    return next(character for character in candidates if character not in used) * 3


def _replace_spans(text: AnyStr, spans: Sequence[tuple[int, int]], replacement: AnyStr) -> AnyStr:
    if not spans:
        return text
    parts: list[AnyStr] = []
    position = 0
    for start, end in spans:
        parts += (text[position:start], replacement)
        position = end
    parts.append(text[position:])
    return text[:0].join(parts)
