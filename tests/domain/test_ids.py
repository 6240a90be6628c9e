import uuid
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from domain.shared import ids


@given(st.uuids(), st.from_regex(r"[a-z]{1,10}", fullmatch=True))
def test_every_uuid_survives_the_round_trip(value: uuid.UUID, prefix: str) -> None:
    assert ids.decode_id(prefix, ids.encode_id(prefix, value)) == value


@given(st.text(max_size=40))
def test_any_text_is_an_id_or_is_not(text: str) -> None:
    value = ids.decode_id("agent", text)
    assert value is None or ids.encode_id("agent", value) == text


def test_another_prefix_is_another_kind() -> None:
    assert ids.decode_id("exec", ids.generate_id("agent")) is None


@given(st.integers(0, 2**47), st.integers(1, 10**6))
def test_ids_sort_by_creation(earlier: int, later: int) -> None:
    first, second = ids.generate_uuid7(earlier), ids.generate_uuid7(earlier + later)
    assert ids.encode_id("x", first) < ids.encode_id("x", second)
    assert first.version == 7
    assert first.variant == uuid.RFC_4122


def test_the_specification_s_own_example() -> None:
    value = uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057")
    assert ids.encode_id("prefix", value) == "prefix_01h455vb4pex5vsknk084sn02q"


@given(st.integers(0, 2**128 - 1), st.integers(1, 3000))
def test_many_ids_are_as_good_as_many_single_ones(tail: int, count: int) -> None:
    first = tail & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62
    with mock.patch("domain.shared.ids.generate_uuid7", return_value=uuid.UUID(int=first)):
        made = ids.generate_ids("eval", count)
    values = [ids.decode_id("eval", one) for one in made]
    assert None not in values
    assert made == sorted(set(made)) == [ids.encode_id("eval", value) for value in values if value]
    assert len(made) == count
    assert {value.version for value in values if value} == {7}
