"""Find names, docstrings and words that break the rules of the house.

Source: `docs/naming.md`. A violation's `key` is `rule path::qualified.name`, by which `exceptions` lists it.
"""

import ast
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tests.language.vocabulary import NO_OPENING, PARTICIPLES, PLACEHOLDERS, PREDICATES, VERBS, WORDS

ROOT: Final = Path(__file__).resolve().parents[2]
PRODUCT: Final = ("api", "workers", "domain", "infra", "scripts")
FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)
# Fewer lines than these may be alike by chance.
COPIED_LINES: Final = 10
# Folders of modules, entered by their modules; everything else that has an `__init__` is entered by that alone.
OPEN_PACKAGES: Final = ("domain.shared", "infra.postgres.schema", "scripts.bench", "scripts")


class Violation(NamedTuple):
    """Describe one broken rule. `rule` is a word like `function` or `docstring`."""

    rule: str
    path: str
    line: int
    name: str
    hint: str

    @property
    def key(self) -> str:
        return f"{self.rule} {self.path}::{self.name}"


def list_files(*endings: str) -> list[str]:
    """Return the paths of the repository's files with these endings, as git lists them."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for path in listed.splitlines() if path.endswith(endings) and (ROOT / path).exists()]


def list_product() -> dict[str, ast.Module]:
    """Return the syntax tree of every product module by path; migrations name their functions as Alembic asks."""
    paths = [path for path in list_files(".py") if path.startswith(tuple(f"{root}/" for root in PRODUCT))]
    return {path: ast.parse((ROOT / path).read_text()) for path in paths if "/schema/versions/" not in path}


def walk_names(tree: ast.AST, above: str = "") -> Iterator[tuple[ast.AST, str]]:
    """Yield every function and class below a node with its qualified name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            name = f"{above}{node.name}"
            yield node, name
            yield from walk_names(node, f"{name}.")
        else:
            yield from walk_names(node, above)


def is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Tell a property from a method."""
    names = {ast.unparse(decorator).split(".")[-1].split("(")[0] for decorator in node.decorator_list}
    return bool(names & {"property", "cached_property", "setter"})


def is_one_word(name: str) -> bool:
    """Tell whether a name has one word only."""
    return "_" not in name.strip("_")


def is_participle(word: str) -> bool:
    """Tell whether a word is a past participle."""
    return word in PARTICIPLES or (word.endswith("ed") and word not in VERBS | {"seed", "speed", "feed", "need"})


def is_dunder(name: str) -> bool:
    """Tell whether Python itself chose the name."""
    return name.startswith("__") and name.endswith("__")


# Names that a base class or a protocol of a library prescribes.
PRESCRIBED: Final = re.compile(
    r"^(visit_|generic_visit|connection_(made|lost)$|(data|eof|datagram|error)_received$|(main|aclose|writable|readable)$)|[A-Z]"
)


def check_function(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str | None:
    """Return what is wrong with a function's name, or None."""
    if is_dunder(node.name) or PRESCRIBED.search(node.name):
        return None
    words = node.name.strip("_").split("_")
    first = words[0]
    if is_property(node):
        return "a property is a noun or is_…" if len(words) == 1 and is_participle(first) else None
    if first in PREDICATES or first in VERBS or (first == "on" and len(words) > 1):
        return None
    if (first in ("to", "from") and len(words) > 1) or "from" in words[1:-1] or "to" in words[1:-1]:
        return None
    return "a bare participle" if is_participle(first) and len(words) == 1 else "does not begin with a verb"


def check_names(trees: dict[str, ast.Module]) -> Iterator[Violation]:
    """Yield functions, classes, constants and variables whose names break a rule."""
    classes = defaultdict(list)
    for path, tree in trees.items():
        for node, name in walk_names(tree):
            if isinstance(node, ast.ClassDef):
                classes[node.name].append((path, node.lineno, name))
            elif isinstance(node, FUNCTIONS) and (hint := check_function(node)):
                yield Violation("function", path, node.lineno, name, hint)
        yield from check_constants(path, tree)
        yield from check_variables(path, tree)
    for places in classes.values():
        for path, line, name in places if len(places) > 1 else []:
            others = ", ".join(other for other, _, _ in places if other != path)
            yield Violation("class", path, line, name, f"a class of this name is also in {others}")


def check_constants(path: str, tree: ast.Module) -> Iterator[Violation]:
    """Yield constants of a module that are one word: what they count, and in what, is missing."""
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for target in targets:
            if (
                isinstance(target, ast.Name)
                and target.id.isupper()
                and is_one_word(target.id)
                and not is_dunder(target.id)
                and not is_type_variable(node.value)
            ):
                yield Violation("constant", path, node.lineno, target.id, "say of what, and in which unit")


def is_type_variable(value: ast.expr | None) -> bool:
    """Tell whether an assignment makes a type variable, which Python names by one letter."""
    return isinstance(value, ast.Call) and ast.unparse(value.func) in ("TypeVar", "ParamSpec")


def check_variables(path: str, tree: ast.Module) -> Iterator[Violation]:
    """Yield arguments and variables that are called by a placeholder."""
    for node in ast.walk(tree):
        name = (
            node.arg
            if isinstance(node, ast.arg)
            else node.id
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            else ""
        )
        if name.strip("_") in PLACEHOLDERS and name:
            yield Violation("variable", path, node.lineno, name, "name what it holds")


def check_docstrings(trees: dict[str, ast.Module]) -> Iterator[Violation]:
    """Yield docstrings that do not begin with a verb, in the imperative or the third person."""
    for path, tree in trees.items():
        for node, name in [(tree, "<module>"), *walk_names(tree)]:
            text = ast.get_docstring(node)  # type: ignore[arg-type]
            if text is None or (isinstance(node, FUNCTIONS) and is_property(node)):
                continue
            first = re.split(r"[^\w`'-]", text, maxsplit=1)[0]
            if not is_verb(first):
                yield Violation(
                    "docstring", path, getattr(node, "lineno", 1), name, f"begins with {first!r}: begin with a verb"
                )


def is_verb(word: str) -> bool:
    """Tell whether a docstring may begin with a word: an imperative, or a verb in the third person."""
    lower = word.lower()
    if lower in NO_OPENING or not word[:1].isupper():
        return False
    stems = {lower, lower.removesuffix("s"), lower.removesuffix("es"), re.sub("ies$", "y", lower)}
    return bool(stems & (VERBS | PREDICATES))


def check_words(paths: list[str]) -> Iterator[Violation]:
    """Yield phrases of code and docs that a reader stumbles over."""
    patterns = {re.compile(pattern, re.IGNORECASE): instead for pattern, instead in WORDS.items()}
    for path in paths:
        for number, line in enumerate((ROOT / path).read_text().splitlines(), 1):
            for pattern, instead in patterns.items():
                for match in pattern.finditer(line):
                    yield Violation("word", path, number, match[0].lower(), instead)


def find_package(module: str, packages: set[str]) -> str:
    """Return the innermost package that has a door and holds a module; empty if none does."""
    parts = module.split(".")
    for count in range(len(parts), 1, -1):
        if (package := ".".join(parts[:count])) in packages:
            return package
    return ""


def check_doors(trees: dict[str, ast.Module]) -> Iterator[Violation]:
    """Yield imports that reach past a package's `__init__` from outside the package."""
    folders = {path.removesuffix("/__init__.py").replace("/", ".") for path in trees if path.endswith("__init__.py")}
    packages = {
        folder
        for folder in folders
        if folder.count(".") >= 1 and folder not in OPEN_PACKAGES and folder != "infra.postgres"
    }
    for path, tree in trees.items():
        here = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            package = find_package(node.module, packages)
            if package and node.module != package and not f"{here}.".startswith(f"{package}."):
                yield Violation("door", path, node.lineno, node.module, f"import from {package}")


def check_sizes(trees: dict[str, ast.Module]) -> Iterator[Violation]:
    """Yield files past 400 lines and functions past 60 lines; a long table of names is no function."""
    for path, tree in trees.items():
        if (lines := len((ROOT / path).read_text().splitlines())) > 400:
            yield Violation("file", path, 1, path, f"{lines} lines")
        for node, name in walk_names(tree):
            if isinstance(node, FUNCTIONS) and (length := (node.end_lineno or 0) - node.lineno + 1) > 60:
                yield Violation("length", path, node.lineno, name, f"{length} lines")


def list_code_lines(path: str) -> list[tuple[int, str]]:
    """Return a file's lines of code by number, white space folded: no imports, comments and lone punctuation."""
    source = (ROOT / path).read_text()
    nodes = ast.walk(ast.parse(source)) if path.endswith(".py") else ()
    imports = [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
    imported = {number for node in imports for number in range(node.lineno, (node.end_lineno or 0) + 1)}
    lines = ((number, " ".join(line.split())) for number, line in enumerate(source.splitlines(), 1))
    return [
        (number, line)
        for number, line in lines
        if number not in imported and not line.startswith(("#", "--")) and re.search(r"\w", line)
    ]


def check_copies(paths: list[str]) -> Iterator[Violation]:
    """Yield runs of lines of code that stand in the product twice, to the letter."""
    places: dict[tuple[str, ...], tuple[str, int]] = {}
    for path in paths:
        lines = list_code_lines(path)
        end = 0  # of the copy that was reported last
        for start in range(len(lines) - COPIED_LINES + 1):
            run = lines[start : start + COPIED_LINES]
            first_path, first_start = places.setdefault(tuple(line for _, line in run), (path, start))
            if start < end or (first_path == path and start < first_start + COPIED_LINES):
                continue
            end = start + COPIED_LINES
            number = list_code_lines(first_path)[first_start][0]
            yield Violation("copy", path, run[0][0], run[0][1], f"the same {COPIED_LINES} lines: {first_path}:{number}")


def list_tests() -> dict[str, ast.Module]:
    """Return the syntax tree of every test module by path; inputs of cases are files of other projects."""
    paths = [path for path in list_files(".py") if path.startswith("tests/") and "/inputs/" not in path]
    return {path: ast.parse((ROOT / path).read_text()) for path in paths}


def is_fixture(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Tell whether pytest calls a function as a fixture, whose name is a noun."""
    return any("fixture" in ast.unparse(decorator) for decorator in node.decorator_list)


def check_test_functions(path: str, tree: ast.Module) -> Iterator[Violation]:
    """Yield helpers that do not begin with a verb or are participles, and names of tests with words that confuse."""
    patterns = {re.compile(pattern): instead for pattern, instead in WORDS.items()}
    for node, name in walk_names(tree):
        if not isinstance(node, FUNCTIONS) or is_fixture(node) or node.name.startswith("pytest_"):
            continue
        if node.name.startswith("test_"):
            for pattern, instead in patterns.items():
                if match := pattern.search(node.name.replace("_", " ")):
                    yield Violation("test name", path, node.lineno, name, f"{match[0]}: {instead}")
        elif (hint := check_function(node)) and ("." not in name or is_participle(node.name.strip("_"))):
            yield Violation("function", path, node.lineno, name, hint)


def check_tests() -> list[Violation]:
    """Return everything in the tests that breaks the rules that apply to them."""
    trees = list_tests()
    names = [violation for violation in check_names(trees) if violation.rule in ("class", "variable")]
    functions = [violation for path, tree in trees.items() for violation in check_test_functions(path, tree)]
    return [*names, *functions, *check_words(list(trees))]


def check_product() -> list[Violation]:
    """Return everything in the product that breaks a rule."""
    trees = list_product()
    sources = [path for path in list_files(".py", ".sql") if path.startswith(tuple(f"{root}/" for root in PRODUCT))]
    texts = [*trees, *(path for path in list_files(".md") if path.startswith(("docs/", "README", "CONTRIBUTING")))]
    checks = (
        *(check_names(trees), check_docstrings(trees), check_doors(trees), check_sizes(trees)),
        *(check_words(texts), check_copies(sources)),
    )
    return [violation for check in checks for violation in check]


def count_words() -> dict[str, tuple[int, int]]:
    """Return by package how many functions there are and how many of them have one-word names."""
    functions: Counter[str] = Counter()
    one_word: Counter[str] = Counter()
    for path, tree in list_product().items():
        package = "/".join(Path(path).parts[:2])
        for node, _ in walk_names(tree):
            if isinstance(node, FUNCTIONS) and not is_dunder(node.name):
                functions[package] += 1
                one_word[package] += is_one_word(node.name)
    return {package: (functions[package], one_word[package]) for package in sorted(functions)}
