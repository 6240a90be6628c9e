"""What an uploaded archive must hold: a manifest, and requirements that can be installed safely.

Both are text from strangers. They are parsed here after the archive was opened inside the sandbox.
"""

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import yaml
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from domain.agents.schema import MAX_TIMEOUT_SECONDS
from domain.executions import DEFAULT_MEMORY_MB

MANIFEST_NAMES: Final = ("agent.yaml", "anymind.yaml")
MAX_MANIFEST_BYTES: Final = 64 * 1024
# A lock file has a hundred hashes for each of its larger packages.
MAX_REQUIREMENTS_BYTES: Final = 1024 * 1024
MIN_MEMORY_MB: Final = 64
MAX_MEMORY_MB: Final = 8192
MAX_LINE_CHARACTERS: Final = 4096
MAX_MANIFEST_MODELS: Final = 32
_ENTRYPOINT: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_MEMORY: Final = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*(M|MB|Mi|MiB|G|GB|Gi|GiB)?", re.IGNORECASE)
_SECONDS: Final = re.compile(r"\s*([0-9]{1,6})\s*s?\s*")
# Those that pip calls strong.
_HASH: Final = re.compile(
    r" --hash[= ] ?((?:sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})(?!\S))", re.I
)
_COMMENT: Final = re.compile(r"(^|\s)#.*$")
_LABEL_CONTROLS: Final = frozenset("\t\n\v\f\r\x85")
_NEARLY: Final = re.compile(r"\s*(agents?|anymind|manifest)\.ya?ml(\.txt)?\s*", re.IGNORECASE)


class BadArchive(Exception):
    """The archive cannot become a version. The message names the file, and the line where there is one."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A manifest that passed. `timeout` in seconds, `memory` in MiB; None where the default holds.

    `models` are the names of those that the code may call, None if it calls none.
    """

    name: str
    entrypoint: str
    description: str | None = None
    framework: str | None = None
    python: str | None = None
    timeout: int | None = None
    memory: int | None = None
    models: list[str] | None = None


class Requirements(msgspec.Struct, frozen=True, kw_only=True):
    """Requirements that passed, one per line, and the hash that names their environment."""

    text: str
    environment: str


class _NoAliases(yaml.SafeLoader):
    """Safe YAML without anchors: an alias can make a small file stand for an endless one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed", event.start_mark)
        return super().compose_node(parent, index)


class WrittenFloat(float):
    """A number of a manifest that knows how it was written: `3.10` is no 3.1 where it is a version."""

    written: str


def _written_float(loader: _NoAliases, node: yaml.ScalarNode) -> WrittenFloat:
    number = WrittenFloat(loader.construct_yaml_float(node))
    number.written = node.value
    return number


_NoAliases.add_constructor("tag:yaml.org,2002:float", _written_float)


def parse_manifest(file: str, text: str, python: str) -> Manifest:
    """Read a manifest. `python` is the version that would run it (`3.11.7`). Errors: `BadArchive`."""
    try:
        raw = yaml.load(text, _NoAliases)  # noqa: S506 - a SafeLoader that allows less
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadArchive(f"{file}, line {line}: {error.problem or 'is not YAML'}") from None
    except (yaml.YAMLError, ValueError, RecursionError, LookupError, AttributeError) as error:
        raise BadArchive(f"{file}: is not YAML: {type(error).__name__}") from None
    if not isinstance(raw, dict):
        raise BadArchive(f"{file}: must be a mapping with at least `name` and `entrypoint`.")
    known = Manifest.__struct_fields__
    for key in raw:
        if key not in known:
            raise BadArchive(f"{file}: unknown field {key!r}; there are: {', '.join(known)}.")
    values = {key: value for key, value in raw.items() if value is not None}
    for key in ("name", "entrypoint"):
        if key not in values:
            raise BadArchive(f"{file}: the field `{key}` is missing.")
    for key in ("name", "entrypoint", "description", "framework"):
        if key in values and not isinstance(values[key], str):
            raise BadArchive(f"{file}: `{key}` must be text.")
        if key in values:
            # A block of YAML (`|`, `>`) ends with a line break.
            values[key] = values[key].strip()
            bad = next((character for character in values[key] if _is_unshowable(character)), None)
            if bad is not None:
                raise BadArchive(f"{file}: `{key}` holds a character that cannot be shown: U+{ord(bad):04X}.")
    if not _ENTRYPOINT.fullmatch(values["entrypoint"]):
        raise BadArchive(f"{file}: `entrypoint` must look like package.module:function.")
    timeout = values.get("timeout")
    if isinstance(timeout, float) and timeout.is_integer():
        timeout = int(timeout)
    if isinstance(timeout, str) and (seconds := _SECONDS.fullmatch(timeout)):
        timeout = int(seconds.group(1))
    if timeout is not None and (type(timeout) is not int or not 1 <= timeout <= MAX_TIMEOUT_SECONDS):
        raise BadArchive(f"{file}: `timeout` must be whole seconds from 1 to {MAX_TIMEOUT_SECONDS}, such as 30.")
    wanted = _python(file, values.get("python"), python)
    return Manifest(
        name=values["name"],
        entrypoint=values["entrypoint"],
        description=values.get("description"),
        framework=values.get("framework"),
        python=wanted,
        timeout=timeout,
        memory=_memory(file, values.get("memory")),
        models=_models(file, values.get("models")),
    )


def _is_unshowable(character: str) -> bool:
    """Whether a label cannot hold a character: line breaks, spaces and joiners of any script it can."""
    return unicodedata.category(character) in ("Cc", "Cs") and character not in _LABEL_CONTROLS


def _python(file: str, wanted: Any, have: str) -> str | None:
    if wanted is None:
        return None
    text = wanted.written if isinstance(wanted, WrittenFloat) else str(wanted)
    text = text.strip()
    quotes = ""
    if isinstance(wanted, float) and text != str(float(wanted)):
        quotes = f" Write it in quotes, as '{text}': without them YAML reads the number {float(wanted)}."
    if not text.isprintable():
        raise BadArchive(f"{file}: `python` holds characters that cannot be shown.")
    try:
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
            allowed = SpecifierSet(f"=={text}.*")
        else:
            allowed = SpecifierSet(f"=={text}" if re.fullmatch(r"[0-9]+(\.[0-9]+)+\w*(\.\*)?", text) else text)
    except InvalidSpecifier:
        raise BadArchive(f"{file}: `python` must be a version such as '3.11' or a range such as '>=3.11'.") from None
    if not allowed.contains(have, prereleases=True):
        raise BadArchive(f"{file}: `python` asks for {text}, and this host runs {have}.{quotes}")
    return text


def _memory(file: str, value: Any) -> int | None:
    if value is None:
        return None
    match = _MEMORY.fullmatch(str(value).strip())
    if match is None or isinstance(value, bool):
        raise BadArchive(f"{file}: `memory` must be MiB, or text such as 512MB, 1GB or 1.5GB.")
    size = math.ceil(float(match.group(1)) * (1024 if (match.group(2) or "").upper().startswith("G") else 1))
    if not MIN_MEMORY_MB <= size <= MAX_MEMORY_MB:
        raise BadArchive(f"{file}: `memory` must be from {MIN_MEMORY_MB} to {MAX_MEMORY_MB} MiB, not {size}.")
    return size


def _models(file: str, value: Any) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MANIFEST_MODELS:
        raise BadArchive(
            f"{file}: `models` must be a list of 1 to {MAX_MANIFEST_MODELS} names of models, such as [smollm2]."
        )
    for name in value:
        # Whether there is such a model is seen when it is called: it may be registered later, or be another then.
        if not isinstance(name, str) or not 1 <= len(name) <= 256 or not name.isprintable() or name.strip() != name:
            raise BadArchive(f"{file}: `models` must hold names of 1 to 256 characters, not {str(name)[:80]!r}.")
    if len(set(value)) < len(value):
        raise BadArchive(f"{file}: `models` names a model twice.")
    return value


def get_memory_limit(version_memory: int | None) -> int:
    """The memory limit of a version in MiB."""
    return version_memory or DEFAULT_MEMORY_MB


def explain_missing_manifest(top: list[str], nested: list[str]) -> str:
    """Return why there is no manifest, from the names at the top and the paths of manifests one folder below."""
    near = [name for name in top if _NEARLY.fullmatch(name)]
    told = [f"There is no {' or '.join(MANIFEST_NAMES)} at the top of the archive."]
    if near:
        told.append(f"Found {near[0]}: call it {MANIFEST_NAMES[0]}.")
    elif nested:
        told.append(f"Found {', '.join(nested[:5])} beside other folders: pack the one folder itself.")
    backslashes = [name for name in top if "\\" in name]
    if backslashes:
        told.append(explain_backslashes(backslashes))
    shown = ", ".join(top[:10])
    more = f" and {len(top) - 10} more" if len(top) > 10 else ""
    told.append(f"At the top there are: {shown}{more}.")
    return " ".join(told)


def explain_backslashes(names: list[str]) -> str:
    """Return what is wrong with names in an archive that hold backslashes where folders are meant."""
    return (
        f"{', '.join(names[:3])}: a backslash is part of a name here and leads into no folder. "
        "Pack the folder with `tar -czf`, which writes slashes."
    )


def parse_requirements(text: str, python: str) -> Requirements | None:
    """Read requirements.txt; None when it asks for nothing. `python` is part of the environment's hash.

    Names, extras, versions, markers and hashes alone: an option, a URL or a path would let an
    archive choose where this host installs from. Errors: `BadArchive` naming the line.
    """
    kept: list[str] = []
    for number, raw in _join_lines(text):
        hashes = {item.lower() for item in _HASH.findall(raw)}
        bare = _HASH.sub("", raw).strip()
        place = f"requirements.txt, line {number}"
        if len(bare) > MAX_LINE_CHARACTERS:
            raise BadArchive(f"{place}: is longer than {MAX_LINE_CHARACTERS} characters.")
        if re.search(r"(^|\s)--hash\b", bare):
            told = "a hash must be --hash=sha256: and 64 hex digits, or sha384 or sha512"
            raise BadArchive(f"{place}: {told}: {bare[:80]!r}.")
        if bare.startswith("-"):
            raise BadArchive(f"{place}: options are not allowed: {bare[:80]!r}. {_instead_of(bare)}")
        try:
            requirement = Requirement(bare)
        except (InvalidRequirement, RecursionError):
            raise BadArchive(f"{place}: not a requirement: {bare[:80]!r}.{_explain_requirement(bare)}") from None
        if requirement.url:
            raise BadArchive(f"{place}: URLs and paths are not allowed: {bare[:80]!r}.")
        kept.append(str(requirement) + "".join(f" --hash={item}" for item in sorted(hashes)))
    if not kept:
        return None
    lines = "\n".join(sorted(set(kept))) + "\n"
    series = ".".join(python.split(".")[:2])
    digest = hashlib.sha256(f"python {series}\n{lines}".encode()).hexdigest()
    return Requirements(text=lines, environment=digest[:40])


def _join_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield each requirement with the number of the line on which it begins, comments and empty ones left out.

    A backslash at its end continues a line. Errors: `BadArchive` for a line of the file that is too long.
    """
    joined: list[str] = []
    first = 1
    for number, line in enumerate([*text.splitlines(), ""], 1):
        # What is behind a comment's sign belongs to the comment, also a backslash.
        bare = _COMMENT.sub("", line).rstrip()
        if len(bare) > MAX_LINE_CHARACTERS:
            raise BadArchive(f"requirements.txt, line {number}: is longer than {MAX_LINE_CHARACTERS} characters.")
        if not joined:
            first = number
        continues = bare.endswith("\\") and line.rstrip() == bare
        joined.append(bare.removesuffix("\\") if continues else bare)
        if not continues:
            whole = " ".join(" ".join(joined).split())
            joined = []
            if whole:
                yield first, whole


def _explain_requirement(line: str) -> str:
    if "://" in line or line.startswith((".", "/")):
        return " URLs and paths are not allowed: name a package of the index, or put its modules into the archive."
    if re.match(r"[\w.\-\[\],]+ *=[^=]", line):
        return " A version is pinned with `==`."
    return " Write a name and versions, such as `httpx>=0.28`."


def _instead_of(option: str) -> str:
    if re.match(r"-e\b|--editable\b", option):
        return "Leave it out: the modules of the archive are found without being installed."
    if re.match(r"-[rc]\b|--(requirement|constraint)\b", option):
        return "Write its lines into this file."
    return "Leave it out: where packages come from is this host's to say."
