import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.builds import BadArchive, parse_manifest, parse_requirements

MINIMAL_MANIFEST = "name: a\nentrypoint: a.b:c\n"


def test_manifest_with_every_field_is_parsed() -> None:
    text = (
        MINIMAL_MANIFEST
        + "description: d\nframework: f\npython: '3.11'\ntimeout: 60\nmemory: 1GB\nmodels: [smollm2, gpt-4o]\n"
    )
    manifest = parse_manifest("agent.yaml", text, "3.11.7")
    assert (manifest.name, manifest.entrypoint, manifest.timeout, manifest.memory) == ("a", "a.b:c", 60, 1024)
    assert (manifest.description, manifest.framework, manifest.python) == ("d", "f", "3.11")
    assert manifest.models == ["smollm2", "gpt-4o"]
    assert parse_manifest("agent.yaml", MINIMAL_MANIFEST, "3.11.7").models is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "line 2"),
        ("name: a\nentrypoint: 'x", "line 2"),
        ("- a", "mapping"),
        ("name: a", "`entrypoint` is missing"),
        ("entrypoint: a:b", "`name` is missing"),
        (MINIMAL_MANIFEST + "colour: red", "unknown field 'colour'"),
        ("name: a\nentrypoint: os.system", "package.module:function"),
        ("name: a\nentrypoint: 'a:b; import os'", "package.module:function"),
        (MINIMAL_MANIFEST + "timeout: 0", "`timeout`"),
        (MINIMAL_MANIFEST + "timeout: true", "`timeout`"),
        (MINIMAL_MANIFEST + "timeout: 99999", "`timeout`"),
        (MINIMAL_MANIFEST + "memory: lots", "`memory`"),
        (MINIMAL_MANIFEST + "memory: 1MB", "64"),
        (MINIMAL_MANIFEST + "models: smollm2", "`models` must be a list"),
        (MINIMAL_MANIFEST + "models: []", "`models` must be a list"),
        (MINIMAL_MANIFEST + f"models: {list('abcdefghijklmnopqrstuvwxyzABCDEFG')}", "`models` must be a list"),
        (MINIMAL_MANIFEST + "models: [3]", "`models` must contain names"),
        (MINIMAL_MANIFEST + "models: ['']", "`models` must contain names"),
        (MINIMAL_MANIFEST + "models: ['a ']", "`models` must contain names"),
        (MINIMAL_MANIFEST + 'models: ["a\\0"]', "line 3: text cannot hold U+0000"),
        (MINIMAL_MANIFEST + "models: [a, b, a]", "`models` names a model twice"),
        (MINIMAL_MANIFEST + "env: [A]", "`env` must be a mapping"),
        (
            MINIMAL_MANIFEST + "env: {DEBUG: true}",
            "`env`: DEBUG is a boolean of YAML, and variables are text: write 'true'",
        ),
        (MINIMAL_MANIFEST + "env: {A: }", "`env`: A has no value: write '' for an empty text."),
        (MINIMAL_MANIFEST + "env: {A: [x]}", "`env`: A must be text or a number."),
        (MINIMAL_MANIFEST + "env: {1A: x}", "`env`: 1A must be a name of the letters"),
        (MINIMAL_MANIFEST + "env: {PATH: x}", "`env`: PATH is reserved: the sandbox sets it."),
        (MINIMAL_MANIFEST + "env: {no_proxy: x}", "`env`: no_proxy is reserved"),
        (MINIMAL_MANIFEST + "env: {PYTHONPATH: x}", "would change where Python finds modules"),
        (MINIMAL_MANIFEST + f"env: {{A: {'x' * 32769}}}", "has 32769 bytes; at most 32768 are allowed."),
        (MINIMAL_MANIFEST + "secrets: TOKEN", "`secrets` must be a list"),
        (MINIMAL_MANIFEST + "secrets: []", "`secrets` must be a list"),
        (MINIMAL_MANIFEST + f"secrets: {[f'A{n}' for n in range(33)]}", "`secrets` must be a list of 1 to 32"),
        (MINIMAL_MANIFEST + "secrets: [3]", "`secrets` must contain names"),
        (MINIMAL_MANIFEST + "secrets: [A-B]", "`secrets`: A-B must be a name"),
        (MINIMAL_MANIFEST + "secrets: [PADDOCK_KEY]", "`secrets`: PADDOCK_KEY is reserved"),
        (MINIMAL_MANIFEST + "secrets: [A, B, A]", "`secrets` names a secret twice"),
        (MINIMAL_MANIFEST + "secrets: [A]\nenv: {A: x}", "A is in `env` and in `secrets`"),
        (MINIMAL_MANIFEST + "secrets: [OPENAI_API_KEY]\nmodels: [smollm2]", "OPENAI_API_KEY is set by the sandbox"),
        (MINIMAL_MANIFEST + "python: '2.7'", "asks for 2.7"),
        (MINIMAL_MANIFEST + "python: '>=9'", "asks for >=9"),
        (MINIMAL_MANIFEST + "python: nonsense", "`python`"),
        (MINIMAL_MANIFEST + 'framework: "a\\0b"', "line 3: text cannot hold U+0000"),
        ("name: 3\nentrypoint: a:b", "`name` must be text"),
        ("a: &a [x]\nb: *a\n", "line 1: anchors are not allowed"),
        ("a: x\nb: *a\n", "line 2: aliases are not allowed"),
        (MINIMAL_MANIFEST + "name: b", "line 3: duplicate key 'name', first on line 1."),
        ("!!python/object/apply:os.system ['x']", "line 1"),
        ("[" * 20000, "agent.yaml"),
        (MINIMAL_MANIFEST + "python: 3.10", "asks for 3.10, and this host runs 3.11.7. Write it in quotes, as '3.10'"),
        (MINIMAL_MANIFEST + "python: 3.12", "asks for 3.12, and this host runs 3.11.7."),
        (MINIMAL_MANIFEST + "python: 3.11.8", "asks for 3.11.8, and this host runs 3.11.7."),
        (MINIMAL_MANIFEST + "timeout: 30.5", "`timeout` must be whole seconds"),
        (MINIMAL_MANIFEST + "timeout: .inf", "line 3: .inf is not a number"),
        (MINIMAL_MANIFEST + "timeout: .nan", "line 3: .nan is not a number"),
        (MINIMAL_MANIFEST + "memory: 0.5MB", "64"),
        (MINIMAL_MANIFEST + "memory: 1,5GB", "`memory` must be a number of MiB, or text like 512MB, 1GB or 1.5GB"),
        (MINIMAL_MANIFEST + "memory: .inf", "line 3: .inf is not a number"),
        (
            MINIMAL_MANIFEST + 'description: "a\\e[31m"',
            "`description` contains the character U+001B, which cannot be shown.",
        ),
        (
            MINIMAL_MANIFEST + 'description: "\\ud83d"',
            "line 3: is not YAML: while parsing a quoted scalar, found invalid Unicode",
        ),
        ("name: a\nentrypoint: |\n  a:b\n  c:d\n", "package.module:function"),
    ],
)
def test_invalid_manifest_is_refused_with_its_field_or_line(text: str, message: str) -> None:
    with pytest.raises(BadArchive) as caught:
        parse_manifest("agent.yaml", text, "3.11.7")
    assert "agent.yaml" in str(caught.value)
    assert message in str(caught.value)


@given(st.text(max_size=300))
def test_any_text_parses_as_manifest_or_raises_bad_archive(text: str) -> None:
    try:
        parse_manifest("agent.yaml", text, "3.11.7")
    except BadArchive:
        pass


def test_environment_id_depends_on_python_version_but_not_on_order() -> None:
    first = parse_requirements("b==1\n# note\n\na>=2 # why\n", "3.11.7")
    reordered = parse_requirements("a>=2\nb==1\n", "3.11.9")
    assert first is not None
    assert reordered is not None
    assert first.environment == reordered.environment
    newer_python = parse_requirements("a>=2\nb==1\n", "3.12.0")
    assert newer_python is not None
    assert newer_python.environment != first.environment


@pytest.mark.parametrize(
    "line",
    [
        "-r other.txt",
        "--index-url http://127.0.0.1/",
        "-e .",
        "x @ file:///etc/passwd",
        "x @ git+https://example.com/x",
        "./local",
        "https://example.com/x.whl",
        "a b c",
        "x==1 --install-option=y",
        "x \\\n --index-url=http://127.0.0.1/",
    ],
)
def test_requirements_cannot_name_a_package_source(line: str) -> None:
    with pytest.raises(BadArchive, match=r"requirements\.txt, line 2"):
        parse_requirements("six\n" + line, "3.11.7")


def test_requirements_keep_hashes_and_markers() -> None:
    text = 'six==1.17.0 ; python_version > "3" --hash=sha256:' + "a" * 64
    requirements = parse_requirements(text, "3.11.7")
    assert requirements is not None
    assert "--hash=sha256:" in requirements.text
    assert "python_version" in requirements.text


def test_empty_requirements_need_no_environment() -> None:
    assert parse_requirements("# nothing\n\n", "3.11.7") is None


@pytest.mark.parametrize(
    "value",
    [
        "a\nb",
        "\u200d👩\u200d💻",
        "می\u200cخواهم",
        "non\u00a0breaking",
        "全角\u3000空白",
        "a\tb",
        "\ufeffmark",
        "a\u2028b",
        "日本語",
    ],
)
def test_manifest_labels_accept_any_unicode_text(value: str) -> None:
    quoted = '"' + "".join(f"\\U{ord(letter):08x}" for letter in value) + '"'
    text = f"name: {quoted}\nentrypoint: a.b:c\ndescription: {quoted}\nframework: {quoted}\n"
    manifest = parse_manifest("agent.yaml", text, "3.11.7")
    assert manifest.name == manifest.description == manifest.framework == value


@pytest.mark.parametrize("style", ["|", ">", "|-", ">+", "|+"])
def test_every_manifest_field_accepts_block_scalars(style: str) -> None:
    fields = {
        "name": "a",
        "entrypoint": "a.b:c",
        "framework": "f",
        "description": "d",
        "python": "3.11",
        "memory": "1GB",
    }
    text = "".join(f"{name}: {style}\n  {value}\n\n" for name, value in fields.items())
    manifest = parse_manifest("agent.yaml", text, "3.11.7")
    assert (manifest.name, manifest.entrypoint, manifest.framework, manifest.memory) == ("a", "a.b:c", "f", 1024)
    assert (manifest.description, manifest.python) == ("d", "3.11")
    assert parse_manifest("agent.yaml", text.replace("\n", "\r\n"), "3.11.7") == manifest


@pytest.mark.parametrize(
    ("value", "installed"),
    [
        ("3.11.7", "3.11.7"),
        ("3.11", "3.11.7"),
        ("'3.11'", "3.11.7"),
        ("3.10", "3.10.4"),
        ("3.1", "3.1.5"),
        ("3", "3.12.0"),
        ("'>=3.10, <3.13'", "3.11.7"),
        ("'>=3.11'", "3.14.0rc1"),
        ("3.11.*", "3.11.7"),
        ("==3.11.7", "3.11.7"),
    ],
)
def test_python_version_keeps_its_spelling(value: str, installed: str) -> None:
    assert parse_manifest("agent.yaml", f"{MINIMAL_MANIFEST}python: {value}", installed).python == value.strip("'")


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("512", 512),
        ("512.0", 512),
        ("1.5GB", 1536),
        ("1.5 gib", 1536),
        ("0.5G", 512),
        ("512Mi", 512),
        ("2Gi", 2048),
        ("100.4MB", 101),
        ("'1 GB'", 1024),
    ],
)
def test_memory_is_rounded_up_to_whole_mebibytes(value: str, size: int) -> None:
    assert parse_manifest("agent.yaml", f"{MINIMAL_MANIFEST}memory: {value}", "3.11.7").memory == size


def test_timeout_accepts_text_and_whole_floats() -> None:
    for value in ("30.0", "30", "'30'", "30s", "'30 s'", ">\n  30\n"):
        timeout = parse_manifest("agent.yaml", f"{MINIMAL_MANIFEST}timeout: {value}", "3.11.7").timeout
        assert (timeout, type(timeout)) == (30, int)


DIGITS_BY_ALGORITHM = {"sha256": "a" * 64, "sha384": "b" * 96, "sha512": "C" * 128}


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_requirement_accepts_150_hashes(line_end: str) -> None:
    sha256_lines = [f"    --hash=sha256:{number:064x} \\" for number in range(150)]
    other_lines = [f"    --hash={kind}:{digits} \\" for kind, digits in DIGITS_BY_ALGORITHM.items()]
    lines = ["# locked", "pydantic-core==2.41.5 ; python_version >= '3.9' \\", *sha256_lines, *other_lines]
    lines += ["    --hash sha256:" + "d" * 64, "    # via pydantic", "six==1.17.0"]
    requirements = parse_requirements(line_end.join(lines) + line_end, "3.11.7")
    assert requirements is not None
    first, second = requirements.text.splitlines()
    assert first.count("--hash=") == 154
    assert f"--hash=sha512:{'c' * 128}" in first
    assert second == "six==1.17.0"
    assert requirements == parse_requirements("\n".join(lines), "3.11.7")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("six==1.17.0 --hash=md5:" + "a" * 32, "a hash must be --hash=sha256:"),
        ("six==1.17.0 --hash=sha256:" + "a" * 63, "a hash must be --hash=sha256:"),
        ("six==1.17.0 --hash=sha512:" + "a" * 64, "a hash must be --hash=sha256:"),
        ("-e .", "the modules of the archive are importable without installation"),
        ("-r more.txt", "Write its lines into this file"),
        ("git+https://example.com/six", "URLs and paths are not allowed"),
        ("./vendored", "put its modules into the archive"),
        ("six=1.17.0", "Pin a version with `==`"),
        ("six 1.17.0", "for example `httpx>=0.28`"),
        ("--index-url http://127.0.0.1/", "this host decides where packages come from"),
        ("x" * 5000, "is longer than 4096 characters"),
        ("x \\\n" + " \\\n".join(["y" * 4000] * 3), "is longer than 4096 characters"),
    ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_invalid_requirement_is_refused_with_its_line_number(line: str, message: str, line_end: str) -> None:
    lines_before = [
        "# tools",
        "idna==3.10 \\",
        "    --hash=sha256:" + "a" * 64 + " \\",
        "    --hash=sha256:" + "b" * 64,
        "",
    ]
    with pytest.raises(BadArchive, match=r"requirements\.txt, line 6: ") as caught:
        parse_requirements(line_end.join([*lines_before, *line.split("\n"), "six"]), "3.11.7")
    assert message in str(caught.value)


def test_requirements_accept_odd_continuations_and_comments() -> None:
    for text in (
        "six \\\n",
        "six \\",
        "six\x0cidna\n",
        "# " + "x" * 5000 + "\nsix",
        "six # why \\\nidna",
        "six \\  \n",
    ):
        requirements = parse_requirements(text, "3.11.7")
        assert requirements is not None
        assert requirements.text.split() == (["idna", "six"] if "idna" in text else ["six"])


def test_long_runs_of_spaces_in_requirements_parse_in_linear_time() -> None:
    """Guard against a search for hashes that took the square of the length of a run of spaces."""
    assert parse_requirements((" " * 4000 + "\\\n") * 250 + "six", "3.11.7") is not None


@given(st.text(max_size=300))
def test_any_text_parses_as_requirements_or_raises_bad_archive(text: str) -> None:
    try:
        parse_requirements(text, "3.11.7")
    except BadArchive:
        pass


def test_variables_and_secrets_of_a_manifest_are_parsed() -> None:
    text = (
        "env: {URL: https://x.example.com, PORT: 8080, VERSION: 1.10, ZIP: 0123, DEBUG: 'true', PYTHONUNBUFFERED: 1}\n"
    )
    manifest = parse_manifest(
        "agent.yaml", MINIMAL_MANIFEST + text + "secrets: [OPENAI_API_KEY, GITHUB_TOKEN]", "3.11.7"
    )
    assert manifest.env == {
        "URL": "https://x.example.com",
        "PORT": "8080",
        "VERSION": "1.10",
        "ZIP": "0123",
        "DEBUG": "true",
        "PYTHONUNBUFFERED": "1",
    }
    # Without `models` an agent may bring a key of its own.
    assert manifest.secrets == ["OPENAI_API_KEY", "GITHUB_TOKEN"]
