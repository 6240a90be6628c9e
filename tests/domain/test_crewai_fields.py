"""Test that every field of CrewAI's own classes is known: it has an effect, or a default, or a reason.

`crewai_fields.json` was recorded from CrewAI's source; it names the version.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from domain.crews.crew_files import CREW_FILE_FIELDS
from domain.crews.crewai_fields import CrewFieldKind, is_default, list_unused_fields
from domain.crews.yaml_schema import YamlAgent, YamlTask

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "crewai_fields.json").read_text())
CREWS_PAGE = (Path(__file__).parents[2] / "docs" / "crews.md").read_text()
USED_FIELDS: dict[CrewFieldKind, frozenset[str]] = {
    "agent": frozenset({*YamlAgent.__struct_fields__, "settings"}),
    "task": frozenset(YamlTask.__struct_fields__),
    "crew": CREW_FILE_FIELDS,
}
KINDS: tuple[CrewFieldKind, ...] = ("agent", "task", "crew")


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_crewai_is_in_exactly_one_table(kind: CrewFieldKind) -> None:
    used, unused = USED_FIELDS[kind], list_unused_fields(kind)
    assert set(RECORDED[kind]) - used - set(unused) == set(), "fields of CrewAI that are in no table"
    assert used & set(unused) == set(), "fields in two tables"
    # Two were fields of earlier versions, and one is a mistake that the answer explains.
    assert set(unused) - set(RECORDED[kind]) - {"planning_llm", "human_input"} == set()


@pytest.mark.parametrize("kind", KINDS)
def test_runtime_fields_of_crewai_are_refused_with_a_reason(kind: CrewFieldKind) -> None:
    for name in RECORDED[f"{kind}_runtime_only"]:
        unused = list_unused_fields(kind)[name]
        assert unused.reason, name
        assert not is_default(name, {"some": "value"}, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_fields_without_an_effect_are_on_the_page(kind: CrewFieldKind) -> None:
    section = CREWS_PAGE.split("## CrewAI's fields")[1].split("\n## ")[0]
    missing = [name for name in (*list_unused_fields(kind), *USED_FIELDS[kind]) if f"`{name}`" not in section]
    assert missing == [], f"fields that docs/crews.md does not list: {missing}"


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_taken_and_other_values_are_not(kind: CrewFieldKind) -> None:
    for name, unused in list_unused_fields(kind).items():
        assert all(is_default(name, value, kind) for value in (*unused.defaults, None)), name
        assert not is_default(name, "something else", kind), name
