import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.builds import BadArchive, parse_manifest, parse_requirements

GOOD = "name: a\nentrypoint: a.b:c\n"


def test_a_whole_manifest() -> None:
    text = GOOD + "description: d\nframework: f\npython: '3.11'\ntimeout: 60\nmemory: 1GB\nmodels: [smollm2, gpt-4o]\n"
    manifest = parse_manifest("agent.yaml", text, "3.11.7")
    assert (manifest.name, manifest.entrypoint, manifest.timeout, manifest.memory) == ("a", "a.b:c", 60, 1024)
    assert (manifest.description, manifest.framework, manifest.python) == ("d", "f", "3.11")
    assert manifest.models == ["smollm2", "gpt-4o"]
    assert parse_manifest("agent.yaml", GOOD, "3.11.7").models is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: [", "line 2"),
        ("name: a\nentrypoint: 'x", "line 2"),
        ("- a", "mapping"),
        ("name: a", "`entrypoint` is missing"),
        ("entrypoint: a:b", "`name` is missing"),
        (GOOD + "colour: red", "unknown field 'colour'"),
        ("name: a\nentrypoint: os.system", "package.module:function"),
        ("name: a\nentrypoint: 'a:b; import os'", "package.module:function"),
        (GOOD + "timeout: 0", "`timeout`"),
        (GOOD + "timeout: true", "`timeout`"),
        (GOOD + "timeout: 99999", "`timeout`"),
        (GOOD + "memory: lots", "`memory`"),
        (GOOD + "memory: 1MB", "64"),
        (GOOD + "models: smollm2", "`models` must be a list"),
        (GOOD + "models: []", "`models` must be a list"),
        (GOOD + f"models: {list('abcdefghijklmnopqrstuvwxyzABCDEFG')}", "`models` must be a list"),
        (GOOD + "models: [3]", "`models` must contain names"),
        (GOOD + "models: ['']", "`models` must contain names"),
        (GOOD + "models: ['a ']", "`models` must contain names"),
        (GOOD + 'models: ["a\\0"]', "line 3: text cannot hold U+0000"),
        (GOOD + "models: [a, b, a]", "`models` names a model twice"),
        (GOOD + "python: '2.7'", "asks for 2.7"),
        (GOOD + "python: '>=9'", "asks for >=9"),
        (GOOD + "python: nonsense", "`python`"),
        (GOOD + 'framework: "a\\0b"', "line 3: text cannot hold U+0000"),
        ("name: 3\nentrypoint: a:b", "`name` must be text"),
        ("a: &a [x]\nb: *a\n", "line 1: anchors are not allowed"),
        ("a: x\nb: *a\n", "line 2: aliases are not allowed"),
        (GOOD + "name: b", "line 3: duplicate key 'name', first on line 1."),
        ("!!python/object/apply:os.system ['x']", "line 1"),
        ("[" * 20000, "agent.yaml"),
        (GOOD + "python: 3.10", "asks for 3.10, and this host runs 3.11.7. Write it in quotes, as '3.10'"),
        (GOOD + "python: 3.12", "asks for 3.12, and this host runs 3.11.7."),
        (GOOD + "python: 3.11.8", "asks for 3.11.8, and this host runs 3.11.7."),
        (GOOD + "timeout: 30.5", "`timeout` must be whole seconds"),
        (GOOD + "timeout: .inf", "line 3: .inf is not a number"),
        (GOOD + "timeout: .nan", "line 3: .nan is not a number"),
        (GOOD + "memory: 0.5MB", "64"),
        (GOOD + "memory: 1,5GB", "`memory` must be a number of MiB, or text like 512MB, 1GB or 1.5GB"),
        (GOOD + "memory: .inf", "line 3: .inf is not a number"),
        (GOOD + 'description: "a\\e[31m"', "`description` contains the character U+001B, which cannot be shown."),
        (GOOD + 'description: "\\ud83d"', "line 3: is not YAML: while parsing a quoted scalar, found invalid Unicode"),
        ("name: a\nentrypoint: |\n  a:b\n  c:d\n", "package.module:function"),
    ],
)
def test_each_mistake_is_named(text: str, told: str) -> None:
    with pytest.raises(BadArchive) as caught:
        parse_manifest("agent.yaml", text, "3.11.7")
    assert "agent.yaml" in str(caught.value)
    assert told in str(caught.value)


@given(st.text(max_size=300))
def test_any_text_is_a_manifest_or_a_bad_archive(text: str) -> None:
    try:
        parse_manifest("agent.yaml", text, "3.11.7")
    except BadArchive:
        pass


def test_the_order_of_requirements_does_not_matter_and_python_does() -> None:
    one = parse_requirements("b==1\n# note\n\na>=2 # why\n", "3.11.7")
    two = parse_requirements("a>=2\nb==1\n", "3.11.9")
    assert one is not None
    assert two is not None
    assert one.environment == two.environment
    other = parse_requirements("a>=2\nb==1\n", "3.12.0")
    assert other is not None
    assert other.environment != one.environment


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
def test_requirements_cannot_choose_where_from(line: str) -> None:
    with pytest.raises(BadArchive, match=r"requirements\.txt, line 2"):
        parse_requirements("six\n" + line, "3.11.7")


def test_hashes_and_markers_stay() -> None:
    text = 'six==1.17.0 ; python_version > "3" --hash=sha256:' + "a" * 64
    kept = parse_requirements(text, "3.11.7")
    assert kept is not None
    assert "--hash=sha256:" in kept.text
    assert "python_version" in kept.text


def test_nothing_asked_for_is_no_environment() -> None:
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
def test_labels_hold_what_people_write(value: str) -> None:
    quoted = '"' + "".join(f"\\U{ord(letter):08x}" for letter in value) + '"'
    text = f"name: {quoted}\nentrypoint: a.b:c\ndescription: {quoted}\nframework: {quoted}\n"
    manifest = parse_manifest("agent.yaml", text, "3.11.7")
    assert manifest.name == manifest.description == manifest.framework == value


@pytest.mark.parametrize("style", ["|", ">", "|-", ">+", "|+"])
def test_every_field_may_be_a_block(style: str) -> None:
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
    ("value", "have"),
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
def test_a_version_of_python_is_read_as_it_is_written(value: str, have: str) -> None:
    assert parse_manifest("agent.yaml", f"{GOOD}python: {value}", have).python == value.strip("'")


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
def test_memory_is_whole_mebibytes_in_the_end(value: str, size: int) -> None:
    assert parse_manifest("agent.yaml", f"{GOOD}memory: {value}", "3.11.7").memory == size


def test_a_timeout_may_be_written_with_a_point() -> None:
    for value in ("30.0", "30", "'30'", "30s", "'30 s'", ">\n  30\n"):
        timeout = parse_manifest("agent.yaml", f"{GOOD}timeout: {value}", "3.11.7").timeout
        assert (timeout, type(timeout)) == (30, int)


HASHES = {"sha256": "a" * 64, "sha384": "b" * 96, "sha512": "C" * 128}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_requirement_may_have_very_many_hashes(end: str) -> None:
    many = [f"    --hash=sha256:{number:064x} \\" for number in range(150)]
    strong = [f"    --hash={kind}:{digits} \\" for kind, digits in HASHES.items()]
    lines = ["# locked", "pydantic-core==2.41.5 ; python_version >= '3.9' \\", *many, *strong]
    lines += ["    --hash sha256:" + "d" * 64, "    # via pydantic", "six==1.17.0"]
    kept = parse_requirements(end.join(lines) + end, "3.11.7")
    assert kept is not None
    first, second = kept.text.splitlines()
    assert first.count("--hash=") == 154
    assert f"--hash=sha512:{'c' * 128}" in first
    assert second == "six==1.17.0"
    assert kept == parse_requirements("\n".join(lines), "3.11.7")


@pytest.mark.parametrize(
    ("line", "told"),
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
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_of_requirements_is_named_by_its_number_in_the_file(line: str, told: str, end: str) -> None:
    before = ["# tools", "idna==3.10 \\", "    --hash=sha256:" + "a" * 64 + " \\", "    --hash=sha256:" + "b" * 64, ""]
    with pytest.raises(BadArchive, match=r"requirements\.txt, line 6: ") as caught:
        parse_requirements(end.join([*before, *line.split("\n"), "six"]), "3.11.7")
    assert told in str(caught.value)


def test_what_was_read_before_is_read_still() -> None:
    for text in (
        "six \\\n",
        "six \\",
        "six\x0cidna\n",
        "# " + "x" * 5000 + "\nsix",
        "six # why \\\nidna",
        "six \\  \n",
    ):
        kept = parse_requirements(text, "3.11.7")
        assert kept is not None
        assert kept.text.split() == (["idna", "six"] if "idna" in text else ["six"])


def test_requirements_of_nothing_but_spaces_are_read_in_no_time() -> None:
    """Looking for hashes in a long run of spaces took the square of its length."""
    assert parse_requirements((" " * 4000 + "\\\n") * 250 + "six", "3.11.7") is not None


@given(st.text(max_size=300))
def test_any_text_is_requirements_or_a_bad_archive(text: str) -> None:
    try:
        parse_requirements(text, "3.11.7")
    except BadArchive:
        pass
