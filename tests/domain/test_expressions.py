"""Test expressions and templates of plans: their values, what they refuse, and the bounds on their work."""

import subprocess
import sys
import threading
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from domain.expressions import (
    BadExpression,
    ExpressionReferences,
    check_expression,
    check_template,
    evaluate_condition,
    evaluate_expression,
    render_template,
)
from domain.expressions.compiler import call_cel, compile_expression, load_cel
from domain.expressions.evaluator import MAX_RESULT_BYTES

EXAMPLE_FILES = [{"name": "a.py", "size": 3}, {"name": "b.py", "size": 30}, {"name": "c.md", "size": 300}]
EXAMPLE_SCOPE: dict[str, Any] = {
    "inputs": {
        "files": EXAMPLE_FILES,
        "x": {"y": 1},
        "name": "Ada",
        "n": 2,
        "f": 1.5,
        "none": None,
        "numbers": [3, 1, 2],
    },
    "steps": {
        "a": {"outputs": {"content": "hi", "y": [0, 1, {"z": 7}]}, "status": "completed", "error": None},
        "a-b": {"outputs": {"ok": True}},
    },
    "item": {"name": "one"},
    "index": 4,
}


def refuse_expression(source: str, scope: Any = None) -> str:
    with pytest.raises(BadExpression) as caught:
        check_expression(source) if scope is None else evaluate_expression(source, scope)
    return caught.value.message


def evaluate_with_cel(source: str, scope: Any) -> Any:
    return load_cel().compile(source).execute(scope)


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("inputs.x.y", 1),
        ("steps.a.outputs.y[2].z", 7),
        ('steps["a-b"].outputs.ok', True),
        ("steps['a-b'].outputs", {"ok": True}),
        ("item", {"name": "one"}),
        ("item.name", "one"),
        ("inputs.none", None),
        ("index + 1", 5),
        ("inputs.f > 1 && inputs.n == 2", True),
        ("inputs.name + '!'", "Ada!"),
        ("inputs.n > 1 ? 'many' : 'one'", "many"),
        ("size(inputs.files)", 3),
        ("inputs.files.size()", 3),
        ("has(inputs.nope) ? inputs.nope : 0", 0),
        ("has(inputs.x.y) && !has(inputs.x.z)", True),
        ("'name' in inputs", True),
        ("2 in [1, 2]", True),
        ("2 in (inputs.numbers + [4]) && !('b' in {'a': 1}) && 'a' in{'a': 1}", True),
        ("steps.a.error == null", True),
        ("inputs.files.map(f, f.name)", ["a.py", "b.py", "c.md"]),
        ("inputs.files.map(f, f.size > 5, f.name)", ["b.py", "c.md"]),
        ("inputs.files.filter(f, f.size > 5)", EXAMPLE_FILES[1:]),
        ("inputs.files.filter(f, f.size > 5).map(f, f.name)[0]", "b.py"),
        ("(inputs.files + inputs.files).map(f, f.size).size()", 6),
        ("inputs.files.filter(f, f.name.endsWith('.py')).size() == 2", True),
        ("inputs.files.all(f, f.size < 1000) && inputs.files.exists(f, f.size < 10)", True),
        ("inputs.files.exists_one(f, f.size > 5)", False),
        ("!inputs.files.exists(f, f.size > 1000)", True),
        ("has(inputs.nope) && inputs.nope.all(x, x > 1)", False),
        ("inputs.numbers.all(x, x > inputs.n)", False),
        ("[[1, 2], [3]].map(l, size(l))", [2, 1]),
        ("inputs.x.map(key, key)", ["y"]),
        ("[1, 2].map(x, {'n': x, 'of': inputs.name})", [{"n": 1, "of": "Ada"}, {"n": 2, "of": "Ada"}]),
        ("[inputs.n, 1].map(x, x * 2)", [4, 2]),
        ("inputs.name.matches('^[A-Z]') && inputs.name.matches(r'\\w+')", True),
        ("type(inputs.n) == int && type(inputs.name) == string", True),
        ("timestamp('2026-01-02T00:00:00Z') > timestamp('2026-01-01T00:00:00Z')", True),
        ("string(timestamp('2026-01-02T00:00:00Z'))", "2026-01-02T00:00:00+00:00"),
        ("int('3') + inputs.n", 5),
        ("-9223372036854775808", -(2**63)),
        ("'}}' + '{{'", "}}{{"),
        ("{'b': 1, 'a': {'c': 2}}", {"a": {"c": 2}, "b": 1}),
        ("null", None),
        ("[]", []),
    ],
)
def test_expression_is_evaluated(source: str, value: Any) -> None:
    assert evaluate_expression(source, EXAMPLE_SCOPE) == value


@pytest.mark.parametrize(
    ("source", "steps", "names"),
    [
        ("inputs.x", [], ["inputs"]),
        ("steps.a.outputs + steps['b c'].outputs", ["a", "b c"], ["steps"]),
        ("item.x == index", [], ["item", "index"]),
        ("steps.a.outputs.map(x, x + steps.b.outputs[0])", ["a", "b"], ["steps"]),
        ("'inputs' + \"steps\"", [], []),
        ("[1].map(x, x)", [], []),
        ("has(steps.a.error)", ["a"], ["steps"]),
        ("{'inputs': item.steps.nope}", [], ["item"]),
    ],
)
def test_referenced_steps_and_names_are_listed(source: str, steps: list[str], names: list[str]) -> None:
    for uses in (check_expression(source), check_template({"a": [f"x {{{{ {source} }}}}"]})):
        assert (uses.steps, uses.names) == (set(steps), set(names))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "missing"),
        ("  \n", "missing"),
        ("1 +", "ends too early"),
        ("true ? 1", "ends too early"),
        ("rb'a'", "`rb`"),
        ("inputs'a'", "character 7"),
        ("1 1", "character 3"),
        ("inputs.x.", "character 10"),
        ("(1", "`(` at character 1 is not closed"),
        ("1)", "`)` at character 2 closes nothing"),
        ("nope", "There is no `nope`; there are inputs, steps, item, index"),
        ("inputs.a + env.b", "`env`"),
        ("x + [1].map(x, x)[0]", "`x`"),
        ("[x].map(x, x)", "`x`"),
        ("{a: 1}", "`a`"),
        ("inputs.__class__.__mro__", "`__class__`"),
        ("inputs['__class__']", "`__class__`"),
        ('steps["__init__"].outputs', "`__init__`"),
        ("item.__init__.__globals__", "`__init__`"),
        ("__import__('os')", "`__import__`"),
        ("inputs.keys()", "`.keys()`"),
        ("inputs.name.format(1)", "`.format()`"),
        ("inputs.a.mro().x", "`.mro()`"),
        ("eval('1')", "`eval()`"),
        ("now()", "`now()`"),
        ("optional.of(1)", "`optional`"),
        ("cel.bind(x, 1, x)", "`cel`"),
        ("[1].existsOne(x, x == 1)", "`.existsOne()`"),
        ("Foo{a: 1}", "`Foo{…}`"),
        ("inputs.x | upper", "'|'"),
        ("inputs.x; 1", "';'"),
        ("lambda: 1", "`lambda`"),
        ("é", "There is no `é`"),
        ("inputs.x🔎", "'🔎'"),
        ("`a`", "'`'"),
        ("b'a'", "`b`"),
        ("'''a'''", "three quotes"),
        ('"""a"""', "three quotes"),
        ("1 // 2", "Comments"),
        (".inputs", "before the dot"),
        ("1 + .inputs.x", "before the dot"),
        ("steps", "id of a step"),
        ("steps[0]", "id of a step"),
        ("steps[inputs.x]", "id of a step"),
        ("steps['a' + 'b']", "id of a step"),
        ("steps.all(s, true)", "id of a step"),
        ("size(steps)", "id of a step"),
        ("[1].map(x, [2].map(y, y))", "`map` stands within `map`"),
        ("[1].all(x, [2].exists(y, y == x))", "`exists` stands within `all`"),
        ("[1].filter(x, [x].filter(y, true).size() > 0)", "within"),
        ("[1].map(inputs, 1)", "choose another name"),
        ("[1].map(__x, 1)", "`__x`"),
        ("[1].map(x)", "is written as"),
        ("[1].map(x.y, 1)", "is written as"),
        ("[1].map(1, 1)", "is written as"),
        ("[1].all(x, y, true)", "is written as"),
        ("map(x, x)", "`map()`"),
        ("inputs.name.matches(inputs.pattern)", "one pattern"),
        ("inputs.name.matches('a' + 'b')", "one pattern"),
        ("inputs.name.matches('(a{50}){50}')", "cannot hold"),
        ("inputs.name.matches('a\\x7b9\\x7d')", "cannot hold"),
        (f"inputs.name.matches('{'a' * 300}')", "at most 200"),
        ("1 + " * 300 + "1", "at most 1000 characters"),
        ("(" * 40 + "1" + ")" * 40, "nested deeper"),
        ("[" * 400 + "]" * 400, "nested deeper"),
        ("'a", "not part"),
        ("99999999999999999999", "int literal"),
    ],
)
def test_forbidden_syntax_is_refused_with_a_reason(source: str, words: str) -> None:
    assert words in refuse_expression(source)
    assert words in refuse_expression(source, EXAMPLE_SCOPE)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("inputs.nope", "There is no `inputs.nope`"),
        ("inputs.x.z.y", "There is no `inputs.x.z`"),
        ("inputs.x.z + 1", "There is no 'z'"),
        ("steps.b.outputs", "There is no `steps.b`"),
        ("inputs.name.first", "is text"),
        ("inputs.files[3]", "3 items"),
        ("inputs.files[3].name + ''", "too short"),
        ("inputs.files.name", "is a list"),
        ("inputs.x[0]", "is an object"),
        ("inputs.n / 0", "by zero"),
        ("9223372036854775807 + inputs.n", "overflow"),
        ("inputs.name + 1", "do not fit"),
        ("inputs.f + inputs.n", "do not fit"),
        ("!inputs.n", "do not fit"),
        ("size(inputs.n)", "`size` does not take"),
        ("int(inputs.name)", "int"),
        ("1.0 / 0.0", "finite"),
        ("double('nan')", "finite"),
        ("[1].map(x, 1.0 / 0.0)", "finite"),
        ("bytes('a')", "bytes"),
        ("timestamp('2026-01-02T00:00:00Z')", "datetime"),
        ("[duration('1h')]", "timedelta"),
        ("{1: 2}", "names that are not text"),
        ("inputs.files.all(f, f.size)", "true or false"),
        ("inputs.n.map(x, x)", "needs a list"),
        ("inputs.name.all(x, true)", "needs a list"),
        ("inputs.nope.all(x, true)", "There is no `inputs.nope`"),
        ("inputs.files.map(f, f.nope)", "There is no `f.nope`"),
    ],
)
def test_failed_evaluation_explains_what_is_missing(source: str, words: str) -> None:
    check_expression(source)
    message = refuse_expression(source, EXAMPLE_SCOPE)
    assert words in message
    assert message.startswith(f"`{source}`: ")


def test_item_and_index_exist_only_in_mapped_steps() -> None:
    for source in ("item", "item.name", "item == 1", "[1].map(x, item)", "[1].map(x, x + index)"):
        assert "There is no `i" in refuse_expression(source, {"inputs": {}, "steps": {}})


def test_condition_must_be_true_or_false() -> None:
    assert evaluate_condition("inputs.n > 1", EXAMPLE_SCOPE) is True
    assert evaluate_condition("steps.a.status != 'completed'", EXAMPLE_SCOPE) is False
    for source in ("inputs.n", "inputs.name", "null", "[true]"):
        with pytest.raises(BadExpression, match="true or false"):
            evaluate_condition(source, EXAMPLE_SCOPE)


KEY_NAMES = st.sampled_from(["a", "b", "in_", "size", "map", "if", "_x", "a-b", "x y", "é", "0", "", "'", "}}"])
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEY_NAMES, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.slow
@given(JSON_VALUES, st.lists(KEY_NAMES | st.integers(0, 3), max_size=4), st.booleans())
@settings(max_examples=500)
def test_plain_path_evaluates_as_in_cel(value: Any, keys: list[str | int], bracketed: bool) -> None:
    source = "inputs"
    for key in keys:
        if isinstance(key, int):
            source += f"[{key}]"
        elif bracketed or not key.isidentifier() or not key.isascii():
            assume("'" not in key)
            source += f"['{key}']"
        else:
            source += f".{key}"
    scope = {"inputs": value}
    assert compile_expression(source).last.path is not None
    try:
        expected = evaluate_with_cel(source, scope)
    except Exception:
        refuse_expression(source, scope)
    else:
        assert evaluate_expression(source, scope) == expected
        # CEL gives the same value with only the needed part of the scope.
        assert evaluate_expression(f"[{source}]", scope) == [expected]
        assert evaluate_expression(f"[1].map(x, {source})", scope) == [expected]


LIST_EXPRESSIONS = st.sampled_from(
    ["inputs.a", "inputs.b", "[1, 2, 3]", "(inputs.a + inputs.b)", "inputs.c.d", "[]", "inputs.no"]
)
LOOP_BODIES = st.sampled_from(
    ["x", "x > 1", "x > 1 && x < 4", "x + 1", "x == inputs.n", "x.k", "inputs.no", "1 / x > 0"]
)
LOOP_MACROS = st.sampled_from(["map", "filter", "all", "exists", "exists_one"])


@pytest.mark.slow
@given(
    LIST_EXPRESSIONS,
    st.lists(st.tuples(LOOP_MACROS, LOOP_BODIES), min_size=1, max_size=3),
    st.sampled_from(
        ["{}", "[{}]", "size({})", "!{}", "has(inputs.no) && {}", "has(inputs.n) || {}", "[{0}, {0}]", "{} == {}"]
    ),
)
@example("inputs.a", [("exists", "1 / x > 0")], "{}")
@settings(max_examples=500)
def test_loops_evaluate_as_in_cel(list_expression: str, chain: list[tuple[str, str]], pattern: str) -> None:
    loop = list_expression + "".join(f".{kind}(x, {body})" for kind, body in chain)
    source = pattern.format(loop, loop)
    scope = {"inputs": {"a": [1, 2, 0], "b": [5], "c": {"d": [{"k": 1}, {"k": 2}]}, "n": 2}}
    try:
        expected = evaluate_with_cel(source, scope)
    except Exception:
        refuse_expression(source, scope)
    else:
        assert evaluate_expression(source, scope) == expected


SYNTAX_PIECES = st.sampled_from(
    [
        "inputs",
        "steps",
        ".a",
        "item",
        ".map(x,",
        "x",
        ")",
        "(",
        "[",
        "]",
        "{",
        "}",
        "+",
        "'a'",
        "1",
        ".",
        ",",
        "?",
        ":",
        "&&",
        "in",
        "!",
        "-",
        "size(",
        "has(",
        ".filter(x,",
        "==",
        '"',
        "\\",
        " ",
        "1.5",
        "r'",
        "{{",
        "}}",
        "__a",
        "true",
    ]
)


@given(st.text(max_size=100) | st.lists(SYNTAX_PIECES, max_size=40).map("".join))
@settings(max_examples=400)
def test_any_text_is_evaluated_or_refused(text: str) -> None:
    for call in (
        lambda: check_expression(text),
        lambda: evaluate_expression(text, EXAMPLE_SCOPE),
        lambda: check_template(text),
        lambda: render_template(text, EXAMPLE_SCOPE),
        lambda: render_template("{{" + text + "}}", EXAMPLE_SCOPE),
    ):
        try:
            call()
        except BadExpression as error:
            assert error.message


@pytest.mark.parametrize(
    ("source", "scope"),
    [
        ("['a']" + ".map(x, x + x)" * 60, {}),
        ("[1]" + ".map(x, [x, x, x])" * 50, {}),
        ("[['a']]" + ".map(x, x + x)" * 60, {}),
        (" + ".join(["item"] * 100), {"item": "a" * 1_000_000}),
        ("size(" + " + ".join(["item"] * 100) + ")", {"item": [1] * 100_000}),
        ("[" + ", ".join(["item"] * 100) + "]", {"item": [1] * 100_000}),
        ("item.all(x, x in item)", {"item": list(range(20_000))}),
        ("item.filter(x, item == item)", {"item": list(range(20_000))}),
        ("item.map(x, item)", {"item": list(range(20_000))}),
        ("item.all(x, x == 1 || x != 1)", {"item": [1] * 2_000_000}),
        ("item.map(x, true)", {"item": [1] * 2_000_000}),
        ("item.map(x, x.a)", {"item": [{"a": "a" * 1000}] * 5_000}),
        ("item == item", {"item": [{}] * 1_000_000}),
        ("item[0] + 1", {"item": [{"a": 1}] * 1_000_000}),
        ("item.map(x, x.matches('\\\\w+\\\\w+\\\\w+'))", {"item": ["a"] * 10_000}),
        ("item + ''", {"item": "a" * (MAX_RESULT_BYTES + 1)}),
        ("has(inputs.no) && item.all(x, x in item)", {"inputs": {}, "item": list(range(20_000))}),
    ],
)
def test_expensive_expressions_are_refused(source: str, scope: Any) -> None:
    check_expression(source.replace("inputs.no", "inputs.yes"))
    message = refuse_expression(source, scope)
    assert "too much work" in message or "larger than" in message


@pytest.mark.slow
def test_simple_loops_over_long_lists_are_allowed() -> None:
    long = {"item": [{"ok": n % 2 == 0, "name": f"n{n}", "more": "x" * 50} for n in range(10_000)]}
    assert evaluate_expression("item", long) is long["item"]
    assert len(evaluate_expression("item.filter(x, x.ok)", long)) == 5_000
    assert len(evaluate_expression("item.map(x, x.name + '!')", long)) == 10_000
    assert evaluate_expression("item.exists(x, x.name == 'n9999')", long) is True
    assert evaluate_expression("item.filter(x, x.name in inputs.names)", {**long, "inputs": {"names": ["n7"]}}) == [
        long["item"][7]
    ]


def test_values_nested_too_deep_for_cel_are_refused() -> None:
    deep: Any = 1
    for _ in range(2_000):
        deep = [deep]
    assert "nested deeper" in refuse_expression("item == 1", {"item": deep})
    assert "nested deeper" in refuse_expression("[1].map(x, item == 1)", {"item": deep})
    assert evaluate_expression("item[0][0]", {"item": deep}) is deep[0][0]


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2**70, "\ud800", [{"a": "\udfff"}], {"\ud800": 1}])
def test_values_that_cel_would_change_are_refused(value: Any) -> None:
    for source in ("[item]", "[1].map(x, [item])", "[[item]].map(x, x[0] == 1)", "item == 1"):
        refuse_expression(source, {"item": value})


PLAIN_TEXTS = st.text(st.characters(exclude_categories=["Cs"])).filter(
    lambda text: not any(m in text for m in ("{{", "{%", "{#"))
)


@given(PLAIN_TEXTS)
@example("}} { } %} #}")
def test_plain_text_is_rendered_unchanged(text: str) -> None:
    assert check_template(text) == ExpressionReferences()
    assert render_template(text, {}) == text


@given(PLAIN_TEXTS, PLAIN_TEXTS)
def test_inserted_text_is_not_rendered_again(before: str, inserted: str) -> None:
    assume(not before.endswith("{"))
    assert (
        render_template(before + "{{ inputs.t }}{{ inputs.t }}", {"inputs": {"t": inserted}})
        == before + inserted + inserted
    )
    # The value of an expression is never read as a template again.
    malicious = inserted + "{{ inputs.secret }}{% x %}"
    assert render_template("{{ inputs.t }}!", {"inputs": {"t": malicious, "secret": 1}}) == malicious + "!"
    assert render_template("{{ inputs.t }}", {"inputs": {"t": malicious, "secret": 1}}) == malicious


@pytest.mark.parametrize(
    ("value", "rendered"),
    [
        ("{{ inputs.files }}", EXAMPLE_FILES),
        ("{{inputs.n}}", 2),
        ("\n  {{ inputs.x }}\n", {"y": 1}),
        ("Hello {{ inputs.name }}, {{ inputs.n }}!", "Hello Ada, 2!"),
        ("{{ inputs.n }}{{ inputs.n }}", "22"),
        ("x={{ inputs.x }} n={{ inputs.none }} b={{ inputs.n == 2 }}", 'x={"y":1} n=null b=true'),
        ("{{ '}}' }}", "}}"),
        ("{{ '{{' }} {{ \"{%\" }}", "{{ {%"),
        ('{{ "a\\"}}" }}', 'a"}}'),
        ("{{ {'a': {'b': 1}}}}", {"a": {"b": 1}}),
        ("{{ inputs.files.map(f,\n f.name) }}", ["a.py", "b.py", "c.md"]),
        ({"a": ["{{ index }}", 1, None, {"b": "{{ item.name }}?"}]}, {"a": [4, 1, None, {"b": "one?"}]}),
        (True, True),
        (1.5, 1.5),
    ],
)
def test_template_is_rendered(value: Any, rendered: Any) -> None:
    check_template(value)
    assert render_template(value, EXAMPLE_SCOPE) == rendered


@pytest.mark.parametrize(
    ("value", "place", "words"),
    [
        ("{% for x in y %}", "", "Statements are not part of templates"),
        ("{% import os %}", "", "Statements"),
        ("a {# c #}", "", "Statements"),
        ({"a": ["x", {"b": "{% x %}"}]}, ".a[1].b", "Statements"),
        ("{{ inputs.x", "", "not closed"),
        ("{{ inputs.x }", "", "not closed"),
        ("a {{ 'b }} c", "", "not part"),
        ("{{ {'a': 1 }}", "", "not closed"),
        ("{{ }}", "", "missing"),
        ("{{}}", "", "missing"),
        (["{{ inputs.x|safe }}"], "[0]", "'|'"),
        ("{{ inputs.x = 3 }}", "", "compared with `==`"),
        ({"files": ["{{ inputs.__class__.__mro__ }}"]}, ".files[0]", "`__class__`"),
        ({"a": {"b": "{{ nope }}"}}, ".a.b", "`nope`"),
        ("{{ self._TemplateReference__context }}", "", "`self`"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "", "`__class__`"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "", "`cycler`"),
        ({"x": {"{{ inputs.a }}": 1}}, ".x", "Names of an object"),
        ("{{ " + "1 + " * 400 + "1 }}", "", "not closed"),
    ],
)
def test_invalid_template_is_refused_with_its_path(value: Any, place: str, words: str) -> None:
    for call in (lambda: check_template(value), lambda: render_template(value, EXAMPLE_SCOPE)):
        with pytest.raises(BadExpression) as caught:
            call()
        assert caught.value.path == place
        assert words in caught.value.message


def test_rendering_error_names_its_path() -> None:
    with pytest.raises(BadExpression) as caught:
        render_template({"a": [1, "{{ inputs.nope }}"]}, EXAMPLE_SCOPE)
    assert caught.value.path == ".a[1]"
    deep: Any = "x"
    for _ in range(100):
        deep = [deep]
    with pytest.raises(BadExpression, match="deeper"):
        check_template(deep)


def test_rendered_size_and_work_are_bounded() -> None:
    scope = {"inputs": {"t": "a" * 1_000_000, "l": ["a" * 1_000] * 1_000}}
    assert len(render_template("{{ inputs.t }}!" * 4, scope)) == 4_000_004
    for value in ("{{ inputs.t }}!" * 5, ["{{ inputs.t }}"] * 5, ["{{ inputs.l }}"] * 5, ["{{ inputs.t }}!"] * 5):
        with pytest.raises(BadExpression, match="larger than"):
            render_template(value, scope)
    # Each expression stays below the limit of one, but all together exceed it.
    with pytest.raises(BadExpression, match="too much work"):
        render_template(["{{ size(inputs.t + '') > 0 }}"] * 1_000, scope)


def test_panic_of_the_cel_library_becomes_an_error() -> None:
    class PanicException(BaseException):  # as pyo3 has it
        pass

    def raise_panic(kind: type[BaseException]) -> None:
        raise kind

    with pytest.raises(RuntimeError, match="panic"):
        call_cel(raise_panic, PanicException)
    with pytest.raises(KeyboardInterrupt):
        call_cel(raise_panic, KeyboardInterrupt)


def test_compiled_expression_runs_in_another_thread() -> None:
    assert evaluate_expression("inputs.n + 40", EXAMPLE_SCOPE) == 42
    values: list[Any] = []
    thread = threading.Thread(target=lambda: values.append(evaluate_expression("inputs.n + 40", EXAMPLE_SCOPE)))
    thread.start()
    thread.join()
    assert values == [42]


def test_cel_command_line_is_not_imported() -> None:
    code = (
        "import sys; from domain.expressions import evaluate_expression; assert 'cel' not in sys.modules;"
        "assert evaluate_expression('[1, 2].map(x, x + inputs.n)', {'inputs': {'n': 1}}) == [2, 3];"
        "bad = {'typer', 'rich', 'prompt_toolkit', 'cel.cli'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
