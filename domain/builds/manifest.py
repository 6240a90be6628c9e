"""Parse the manifest and the requirements of an uploaded archive.

Both are untrusted text. They are parsed here after the archive was unpacked inside the sandbox.
"""

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from domain import egress
from domain.agents import MAX_TIMEOUT_SECONDS
from domain.builds.archive_schemas import BadArchive, parse_schema_field
from domain.shared.variables import find_gateway_names, find_name_problem, list_variable_problems
from domain.shared.yaml_reader import YamlError, read_yaml

MANIFEST_NAMES: Final = ("agent.yaml", "anymind.yaml")
MAX_MANIFEST_BYTES: Final = 64 * 1024
# A lock file has a hundred hashes for each of its larger packages.
MAX_REQUIREMENTS_BYTES: Final = 1024 * 1024
MIN_MEMORY_MB: Final = 64
DEFAULT_MEMORY_MB: Final = 512
MAX_MEMORY_MB: Final = 8192
MAX_LINE_CHARACTERS: Final = 4096
MAX_MANIFEST_MODELS: Final = 32
MAX_MANIFEST_SECRETS: Final = 32
_ENTRYPOINT_PATTERN: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_MEMORY_PATTERN: Final = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*(M|MB|Mi|MiB|G|GB|Gi|GiB)?", re.IGNORECASE)
_SECONDS_PATTERN: Final = re.compile(r"\s*([0-9]{1,6})\s*s?\s*")
# The algorithms that pip accepts as strong.
_HASH_OPTION: Final = re.compile(
    r" --hash[= ] ?((?:sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})(?!\S))", re.I
)
_COMMENT_PATTERN: Final = re.compile(r"(^|\s)#.*$")
_LABEL_CONTROLS: Final = frozenset("\t\n\v\f\r\x85")
_SIMILAR_NAME: Final = re.compile(r"\s*(agents?|anymind|manifest)\.ya?ml(\.txt)?\s*", re.IGNORECASE)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a valid manifest. `timeout` is in seconds, `memory` in MiB; None means the default.

    `models` are the names of the models that the code may call, None if it may call none. `env` are variables of its
    process, `secrets` the names of secrets that it gets as variables, `egress` the hosts that it reaches.
    `input_schema` and `output_schema` are JSON Schemas, or paths of files in the archive that hold them.
    """

    name: str
    entrypoint: str
    description: str | None = None
    framework: str | None = None
    python: str | None = None
    timeout: int | None = None
    memory: int | None = None
    models: list[str] | None = None
    env: dict[str, str] | None = None
    secrets: list[str] | None = None
    egress: list[str] | None = None
    input_schema: dict[str, Any] | str | None = None
    output_schema: dict[str, Any] | str | None = None


class Requirements(msgspec.Struct, frozen=True, kw_only=True):
    """Hold valid requirements, one per line, and the hash that names their environment."""

    text: str
    environment: str


def parse_manifest(file: str, text: str, python: str) -> Manifest:
    """Parse a manifest. `python` is the version that would run it (`3.11.7`). Errors: `BadArchive`."""
    values, float_texts = _read_values(file, text)
    if not _ENTRYPOINT_PATTERN.fullmatch(values["entrypoint"]):
        raise BadArchive(f"{file}: `entrypoint` must look like package.module:function.")
    models = _parse_models(file, values.get("models"))
    env = _parse_variables(file, values.get("env"), float_texts)
    secrets = _parse_secrets(file, values.get("secrets"))
    _check_variable_names(file, env or {}, secrets or [], has_gateway=models is not None)
    return Manifest(
        name=values["name"],
        entrypoint=values["entrypoint"],
        description=values.get("description"),
        framework=values.get("framework"),
        python=_parse_python(file, values.get("python"), float_texts.get("python"), python),
        timeout=_parse_timeout(file, values.get("timeout")),
        memory=_parse_memory(file, values.get("memory")),
        models=models,
        env=env,
        secrets=secrets,
        egress=_parse_egress(file, values.get("egress")),
        input_schema=parse_schema_field(file, "input_schema", values.get("input_schema")),
        output_schema=parse_schema_field(file, "output_schema", values.get("output_schema")),
    )


def _read_values(file: str, text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the fields of a manifest that are set, and the source texts of floats. Errors: `BadArchive`."""
    try:
        document = read_yaml(text)
    except YamlError as error:
        raise BadArchive(f"{file}, line {error.line}: {error.message}") from None
    if document.duplicates:
        duplicate = document.duplicates[0]
        raise BadArchive(f"{file}, line {duplicate.line}: {duplicate.message}")
    if not isinstance(document.value, dict):
        raise BadArchive(f"{file}: must be a mapping with at least `name` and `entrypoint`.")
    fields = Manifest.__struct_fields__
    for key in document.value:
        if key not in fields:
            raise BadArchive(f"{file}: unknown field {key!r}. Known fields: {', '.join(fields)}.")
    values = {key: value for key, value in document.value.items() if value is not None}
    for key in ("name", "entrypoint"):
        if key not in values:
            raise BadArchive(f"{file}: the field `{key}` is missing.")
    for key in ("name", "entrypoint", "description", "framework"):
        if key in values:
            values[key] = _check_text(file, key, values[key])
    return values, document.float_texts


def _check_text(file: str, key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadArchive(f"{file}: `{key}` must be text.")
    # A block of YAML (`|`, `>`) ends with a line break.
    text = value.strip()
    invisible = next((character for character in text if _is_invisible(character)), None)
    if invisible is not None:
        raise BadArchive(f"{file}: `{key}` contains the character U+{ord(invisible):04X}, which cannot be shown.")
    return text


def _is_invisible(character: str) -> bool:
    """Return whether a label must not contain a character. Line breaks, spaces and joiners are allowed."""
    return unicodedata.category(character) in ("Cc", "Cs") and character not in _LABEL_CONTROLS


def _parse_timeout(file: str, value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and (seconds := _SECONDS_PATTERN.fullmatch(value)):
        value = int(seconds.group(1))
    if value is None or (type(value) is int and 1 <= value <= MAX_TIMEOUT_SECONDS):
        return value
    raise BadArchive(f"{file}: `timeout` must be whole seconds from 1 to {MAX_TIMEOUT_SECONDS}, for example 30.")


def _parse_python(file: str, value: Any, float_text: str | None, installed: str) -> str | None:
    if value is None:
        return None
    # YAML reads `3.10` as the number 3.1, which is another version.
    text = (float_text or str(value)).strip()
    hint = ""
    if isinstance(value, float) and text != str(value):
        hint = f" Write it in quotes, as '{text}': without quotes YAML reads the number {value}."
    if not text.isprintable():
        raise BadArchive(f"{file}: `python` contains characters that cannot be shown.")
    try:
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
            allowed = SpecifierSet(f"=={text}.*")
        else:
            allowed = SpecifierSet(f"=={text}" if re.fullmatch(r"[0-9]+(\.[0-9]+)+\w*(\.\*)?", text) else text)
    except InvalidSpecifier:
        raise BadArchive(f"{file}: `python` must be a version like '3.11' or a range like '>=3.11'.") from None
    if not allowed.contains(installed, prereleases=True):
        raise BadArchive(f"{file}: `python` asks for {text}, and this host runs {installed}.{hint}")
    return text


def _parse_memory(file: str, value: Any) -> int | None:
    if value is None:
        return None
    match = _MEMORY_PATTERN.fullmatch(str(value).strip())
    if match is None or isinstance(value, bool):
        raise BadArchive(f"{file}: `memory` must be a number of MiB, or text like 512MB, 1GB or 1.5GB.")
    size = math.ceil(float(match.group(1)) * (1024 if (match.group(2) or "").upper().startswith("G") else 1))
    if not MIN_MEMORY_MB <= size <= MAX_MEMORY_MB:
        raise BadArchive(f"{file}: `memory` must be from {MIN_MEMORY_MB} to {MAX_MEMORY_MB} MiB, not {size}.")
    return size


def _parse_models(file: str, value: Any) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MANIFEST_MODELS:
        raise BadArchive(f"{file}: `models` must be a list of 1 to {MAX_MANIFEST_MODELS} model names, like [smollm2].")
    for name in value:
        # Whether the model exists is checked at the call: it may be registered, or replaced, after the build.
        if not isinstance(name, str) or not 1 <= len(name) <= 256 or not name.isprintable() or name.strip() != name:
            raise BadArchive(f"{file}: `models` must contain names of 1 to 256 characters, not {str(name)[:80]!r}.")
    if len(set(value)) < len(value):
        raise BadArchive(f"{file}: `models` names a model twice.")
    return value


def _parse_egress(file: str, value: Any) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise BadArchive(f"{file}: `egress` must be a list of hosts, like [api.github.com, 'db.example.com:5432'].")
    try:
        return egress.format_entries(egress.parse_entries(value)) or None
    except egress.BadEgressEntry as error:
        raise BadArchive(f"{file}: `egress` {error}") from None


def _parse_variables(file: str, value: Any, float_texts: dict[str, str]) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise BadArchive(f"{file}: `env` must be a mapping of names to values, like {{LOG_LEVEL: debug}}.")
    variables = {
        name: _read_variable(f"{file}: `env`: {name[:100]}", text, float_texts.get(f"env.{name}"))
        for name, text in value.items()
    }
    for name, problem in list_variable_problems(variables):
        raise BadArchive(f"{file}: `env`: {name[:100]} {problem}" if name else f"{file}: `env` {problem}")
    return variables


def _read_variable(place: str, value: Any, float_text: str | None) -> str:
    """Return the value of a variable as text. Numbers are their text, as in a Compose file; `true` has to be quoted."""
    if isinstance(value, bool):
        text = "true" if value else "false"
        raise BadArchive(f"{place} is a boolean of YAML, and variables are text: write '{text}' in quotes.")
    if value is None:
        raise BadArchive(f"{place} has no value: write '' for an empty text.")
    if not isinstance(value, str | int | float):
        raise BadArchive(f"{place} must be text or a number.")
    return float_text or str(value)


def _parse_secrets(file: str, value: Any) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MANIFEST_SECRETS:
        rule = f"must be a list of 1 to {MAX_MANIFEST_SECRETS} names of secrets, like [GITHUB_TOKEN]."
        raise BadArchive(f"{file}: `secrets` {rule}")
    for name in value:
        if not isinstance(name, str):
            raise BadArchive(f"{file}: `secrets` must contain names, not {str(name)[:80]!r}.")
        problem = find_name_problem(name)
        if problem is not None:
            raise BadArchive(f"{file}: `secrets`: {name[:100]} {problem}")
    if len(set(value)) < len(value):
        raise BadArchive(f"{file}: `secrets` names a secret twice.")
    return value


def _check_variable_names(file: str, env: dict[str, str], secrets: list[str], has_gateway: bool) -> None:
    """Refuse names that stand in `env` and in `secrets`, and those that a gateway sets."""
    for name in secrets:
        if name in env:
            raise BadArchive(f"{file}: {name} is in `env` and in `secrets`. Remove it from one of them.")
    for name in find_gateway_names([*env, *secrets]) if has_gateway else ():
        raise BadArchive(
            f"{file}: {name} is set by the sandbox for an agent with `models`. Remove it, or remove `models`."
        )


def get_memory_limit(version_memory: int | None) -> int:
    """Return the memory limit of a version in MiB."""
    return version_memory or DEFAULT_MEMORY_MB


def explain_missing_manifest(top: list[str], nested: list[str]) -> str:
    """Explain a missing manifest, from the names at the top and the paths of manifests one folder below."""
    similar = [name for name in top if _SIMILAR_NAME.fullmatch(name)]
    sentences = [f"The archive has no {' or '.join(MANIFEST_NAMES)} at its top level."]
    if similar:
        sentences.append(f"Found {similar[0]}: rename it to {MANIFEST_NAMES[0]}.")
    elif nested:
        sentences.append(f"Found {', '.join(nested[:5])} beside other folders: pack only that folder.")
    backslashes = [name for name in top if "\\" in name]
    if backslashes:
        sentences.append(explain_backslashes(backslashes))
    listed = ", ".join(top[:10])
    more = f" and {len(top) - 10} more" if len(top) > 10 else ""
    sentences.append(f"The top level contains: {listed}{more}.")
    return " ".join(sentences)


def explain_backslashes(names: list[str]) -> str:
    """Explain names in an archive that contain backslashes instead of slashes."""
    return (
        f"{', '.join(names[:3])}: a backslash is part of a name here and does not separate folders. "
        "Pack the folder with `tar -czf`, which writes slashes."
    )


def parse_requirements(text: str, python: str) -> Requirements | None:
    """Parse requirements.txt; return None if it has no requirements. `python` is part of the environment's hash.

    Only names, extras, versions, markers and hashes are allowed: with an option, a URL or a path, an archive could
    choose where this host installs from. Errors: `BadArchive` names the line.
    """
    requirements: list[str] = []
    for number, raw in _join_lines(text):
        hashes = {item.lower() for item in _HASH_OPTION.findall(raw)}
        bare = _HASH_OPTION.sub("", raw).strip()
        place = f"requirements.txt, line {number}"
        if len(bare) > MAX_LINE_CHARACTERS:
            raise BadArchive(f"{place}: is longer than {MAX_LINE_CHARACTERS} characters.")
        if re.search(r"(^|\s)--hash\b", bare):
            rule = "a hash must be --hash=sha256: and 64 hex digits, or sha384 or sha512"
            raise BadArchive(f"{place}: {rule}: {bare[:80]!r}.")
        if bare.startswith("-"):
            raise BadArchive(f"{place}: options are not allowed: {bare[:80]!r}. {_suggest_alternative(bare)}")
        try:
            requirement = Requirement(bare)
        except (InvalidRequirement, RecursionError):
            raise BadArchive(f"{place}: not a valid requirement: {bare[:80]!r}.{_explain_requirement(bare)}") from None
        if requirement.url:
            raise BadArchive(f"{place}: URLs and paths are not allowed: {bare[:80]!r}.")
        requirements.append(str(requirement) + "".join(f" --hash={item}" for item in sorted(hashes)))
    if not requirements:
        return None
    lines = "\n".join(sorted(set(requirements))) + "\n"
    series = ".".join(python.split(".")[:2])
    digest = hashlib.sha256(f"python {series}\n{lines}".encode()).hexdigest()
    return Requirements(text=lines, environment=digest[:40])


def _join_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield each requirement with the number of its first line, without comments and empty lines.

    A backslash at the end of a line continues it. Errors: `BadArchive` for a line that is too long.
    """
    joined: list[str] = []
    first = 1
    for number, line in enumerate([*text.splitlines(), ""], 1):
        # A backslash after # is part of the comment.
        bare = _COMMENT_PATTERN.sub("", line).rstrip()
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
        return " URLs and paths are not allowed. Name a package of the index, or put its modules into the archive."
    if re.match(r"[\w.\-\[\],]+ *=[^=]", line):
        return " Pin a version with `==`."
    return " Write a name and versions, for example `httpx>=0.28`."


def _suggest_alternative(option: str) -> str:
    if re.match(r"-e\b|--editable\b", option):
        return "Remove it: the modules of the archive are importable without installation."
    if re.match(r"-[rc]\b|--(requirement|constraint)\b", option):
        return "Write its lines into this file."
    return "Remove it: this host decides where packages come from."
