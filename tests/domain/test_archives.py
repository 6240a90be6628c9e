import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.archives import BadArchive, parse_manifest, parse_requirements

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
        ("name: [", "line 1"),
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
        (GOOD + "models: [3]", "`models` must hold names"),
        (GOOD + "models: ['']", "`models` must hold names"),
        (GOOD + "models: ['a ']", "`models` must hold names"),
        (GOOD + 'models: ["a\\0"]', "`models` must hold names"),
        (GOOD + "models: [a, b, a]", "`models` names a model twice"),
        (GOOD + "python: '2.7'", "asks for 2.7"),
        (GOOD + "python: '>=9'", "asks for >=9"),
        (GOOD + "python: nonsense", "`python`"),
        (GOOD + 'framework: "a\\0b"', "cannot be shown"),
        ("name: 3\nentrypoint: a:b", "`name` must be text"),
        ("a: &a [x]\nb: *a\n", "aliases"),
        ("!!python/object/apply:os.system ['x']", "line 1"),
        ("[" * 20000, "agent.yaml"),
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
