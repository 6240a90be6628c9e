import uuid
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from domain.shared import ids


@given(st.uuids(), st.from_regex(r"[a-z]{1,10}", fullmatch=True))
def test_encoding_and_decoding_a_uuid_round_trips(value: uuid.UUID, prefix: str) -> None:
    assert ids.decode_id(prefix, ids.encode_id(prefix, value)) == value


@given(st.text(max_size=40))
def test_decoded_text_encodes_to_itself(text: str) -> None:
    value = ids.decode_id("agent", text)
    assert value is None or ids.encode_id("agent", value) == text


def test_id_with_another_prefix_is_refused() -> None:
    assert ids.decode_id("exec", ids.generate_id("agent")) is None


@given(st.integers(0, 2**47), st.integers(1, 10**6))
def test_ids_sort_by_creation_time(earlier: int, later: int) -> None:
    first, second = ids.generate_uuid7(earlier), ids.generate_uuid7(earlier + later)
    assert ids.encode_id("x", first) < ids.encode_id("x", second)
    assert first.version == 7
    assert first.variant == uuid.RFC_4122


def test_example_of_the_typeid_specification() -> None:
    value = uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057")
    assert ids.encode_id("prefix", value) == "prefix_01h455vb4pex5vsknk084sn02q"


@given(st.integers(0, 2**128 - 1), st.integers(1, 3000))
def test_batch_of_ids_is_unique_sorted_and_valid(tail: int, count: int) -> None:
    first = tail & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62
    with mock.patch("domain.shared.ids.generate_uuid7", return_value=uuid.UUID(int=first)):
        generated = ids.generate_ids("eval", count)
    values = [ids.decode_id("eval", generated_id) for generated_id in generated]
    assert None not in values
    assert generated == sorted(set(generated)) == [ids.encode_id("eval", value) for value in values if value]
    assert len(generated) == count
    assert {value.version for value in values if value} == {7}
