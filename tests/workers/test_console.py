"""What agents, tenants and providers wrote begins no line of a console and steers no terminal."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from infra.telemetry import configure_logging, escape_controls
from scripts.log_format import format_log_line

FORGED = "x\n18:00:00 api     error   all is lost\r\x1b[2J\x1b]0;title\x07\x9b31m\x85\u2028\u202egnp\u2066"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Logging as processes do it, into a buffer."""
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    configure_logging("info", "run")
    written = io.StringIO()
    root.handlers[0].setStream(written)  # type: ignore[attr-defined]
    yield written
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**before)


def _is_harmless(text: str) -> bool:
    return all(letter.isprintable() or letter in "\t" for letter in text)


def test_a_log_line_of_an_agent_s_words_is_one_line_of_json_and_of_the_console(lines: io.StringIO) -> None:
    log = structlog.get_logger("test")
    log.info("ended", error=FORGED, **{"odd\nname": FORGED})
    log.info(FORGED, nested={"name": [FORGED]}, half="\ud83d")
    try:
        raise ValueError(FORGED)
    except ValueError:
        log.exception("failed")
    logging.getLogger("library").warning("it said %s", FORGED)
    written = lines.getvalue().splitlines()
    assert len(written) == 4
    assert json.loads(written[0])["error"] == FORGED, "the value itself stays"
    for line in written:
        assert _is_harmless(line)
        shown = format_log_line("run", line.encode())
        first, *rest = shown.split("\n")
        assert all(part.startswith("    ") for part in rest), "only a traceback has more lines, and those are set in"
        assert all(_is_harmless(part) for part in [first, *rest])
        assert "all is lost" in shown


@pytest.mark.parametrize("line", [FORGED.encode(), b"\x1b[31mplain", b"{not json\x9b", '{"a": "\u202e"}'.encode()])
def test_other_lines_are_written_out_too(line: bytes) -> None:
    assert _is_harmless(format_log_line("postgres", line))


@given(st.text(max_size=200))
def test_any_text_is_one_line_in_the_end(text: str) -> None:
    shown = escape_controls(text)
    assert len(shown.splitlines()) <= 1
    assert "\x1b" not in shown
    assert escape_controls(shown) == shown


def test_what_people_write_stays_as_it_is() -> None:
    for text in ("plain", "日本語 é 👩\u200d💻", "a\tb", "می\u200cخواهم", "C:\\x"):
        assert escape_controls(text) == text
