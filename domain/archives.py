"""What an uploaded archive must hold: a manifest, and requirements that can be installed safely.

Both are text from strangers. They are parsed here after the archive was opened inside the sandbox.
"""

import hashlib
import re
from typing import Any, Final

import msgspec
import yaml
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from domain.agents.schema import MAX_TIMEOUT
from domain.executions import DEFAULT_MEMORY_MB

MANIFESTS: Final = ("agent.yaml", "anymind.yaml")
MAX_MANIFEST: Final = 64 * 1024
MAX_REQUIREMENTS: Final = 256 * 1024
MIN_MEMORY_MB: Final = 64
MAX_MEMORY_MB: Final = 8192
MAX_LINE: Final = 4096
MAX_MODELS: Final = 32
_ENTRYPOINT: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_MEMORY: Final = re.compile(r"(\d{1,6})\s*(M|MB|MiB|G|GB|GiB)?", re.IGNORECASE)
_HASH: Final = re.compile(r"\s+--hash=sha256:[0-9a-f]{64}")


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
        if key in values and not values[key].isprintable():
            raise BadArchive(f"{file}: `{key}` holds characters that cannot be shown.")
    if not _ENTRYPOINT.fullmatch(values["entrypoint"]):
        raise BadArchive(f"{file}: `entrypoint` must look like package.module:function.")
    timeout = values.get("timeout")
    if timeout is not None and (type(timeout) is not int or not 1 <= timeout <= MAX_TIMEOUT):
        raise BadArchive(f"{file}: `timeout` must be whole seconds from 1 to {MAX_TIMEOUT}.")
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


def _python(file: str, wanted: Any, have: str) -> str | None:
    if wanted is None:
        return None
    text = str(wanted)
    if not text.isprintable():
        raise BadArchive(f"{file}: `python` holds characters that cannot be shown.")
    try:
        allowed = SpecifierSet(f"=={text}.*" if re.fullmatch(r"\d+(\.\d+)?", text) else text)
    except InvalidSpecifier:
        raise BadArchive(f"{file}: `python` must be a version such as '3.11' or a range such as '>=3.11'.") from None
    if not allowed.contains(have):
        raise BadArchive(f"{file}: `python` asks for {text}, and this host runs {have}.")
    return text


def _memory(file: str, value: Any) -> int | None:
    if value is None:
        return None
    match = _MEMORY.fullmatch(str(value).strip())
    if match is None or isinstance(value, bool):
        raise BadArchive(f"{file}: `memory` must be MiB, or text such as 512MB or 1GB.")
    size = int(match.group(1)) * (1024 if (match.group(2) or "").upper().startswith("G") else 1)
    if not MIN_MEMORY_MB <= size <= MAX_MEMORY_MB:
        raise BadArchive(f"{file}: `memory` must be from {MIN_MEMORY_MB} to {MAX_MEMORY_MB} MiB, not {size}.")
    return size


def _models(file: str, value: Any) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MODELS:
        raise BadArchive(f"{file}: `models` must be a list of 1 to {MAX_MODELS} names of models, such as [smollm2].")
    for name in value:
        # Whether there is such a model is seen when it is called: it may be registered later, or be another then.
        if not isinstance(name, str) or not 1 <= len(name) <= 256 or not name.isprintable() or name.strip() != name:
            raise BadArchive(f"{file}: `models` must hold names of 1 to 256 characters, not {str(name)[:80]!r}.")
    if len(set(value)) < len(value):
        raise BadArchive(f"{file}: `models` names a model twice.")
    return value


def memory_of(version_memory: int | None) -> int:
    """The memory limit of a version in MiB."""
    return version_memory or DEFAULT_MEMORY_MB


def parse_requirements(text: str, python: str) -> Requirements | None:
    """Read requirements.txt; None when it asks for nothing. `python` is part of the environment's hash.

    Names, extras, versions, markers and sha256 hashes alone: an option, a URL or a path would let an
    archive choose where this host installs from. Errors: `BadArchive` naming the line.
    """
    kept: list[str] = []
    joined = text.replace("\\\r\n", " ").replace("\\\n", " ")
    for number, raw in enumerate(joined.splitlines(), 1):
        line = " ".join(re.sub(r"(^|\s)#.*$", "", raw[: MAX_LINE + 1]).split())
        if not line:
            continue
        if len(raw) > MAX_LINE:
            raise BadArchive(f"requirements.txt, line {number}: is longer than {MAX_LINE} characters.")
        hashes = _HASH.findall(line)
        bare = _HASH.sub("", line).strip()
        if bare.startswith("-"):
            raise BadArchive(f"requirements.txt, line {number}: options are not allowed: {bare[:80]!r}.")
        try:
            requirement = Requirement(bare)
        except (InvalidRequirement, RecursionError):
            raise BadArchive(f"requirements.txt, line {number}: not a requirement: {bare[:80]!r}.") from None
        if requirement.url:
            raise BadArchive(f"requirements.txt, line {number}: URLs and paths are not allowed: {bare[:80]!r}.")
        kept.append(str(requirement) + "".join(f" {item.strip()}" for item in sorted(hashes)))
    if not kept:
        return None
    lines = "\n".join(sorted(set(kept))) + "\n"
    series = ".".join(python.split(".")[:2])
    digest = hashlib.sha256(f"python {series}\n{lines}".encode()).hexdigest()
    return Requirements(text=lines, environment=digest[:40])
