"""Text of agents, tenants and providers begins no line of a console and sends no control codes to a terminal."""

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

FORGED_TEXT = "x\n18:00:00 api     error   all is lost\r\x1b[2J\x1b]0;title\x07\x9b31m\x85\u2028\u202egnp\u2066"


@pytest.fixture
def log_buffer() -> Iterator[io.StringIO]:
    """Log as processes do, into a buffer."""
    root, configuration = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    configure_logging("info", "run")
    buffer = io.StringIO()
    root.handlers[0].setStream(buffer)  # type: ignore[attr-defined]
    yield buffer
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**configuration)


def _is_printable(text: str) -> bool:
    return all(letter.isprintable() or letter in "\t" for letter in text)


def test_text_of_agents_stays_on_one_line_of_json_and_of_the_console(log_buffer: io.StringIO) -> None:
    log = structlog.get_logger("test")
    log.info("ended", error=FORGED_TEXT, **{"odd\nname": FORGED_TEXT})
    log.info(FORGED_TEXT, nested={"name": [FORGED_TEXT]}, half="\ud83d")
    try:
        raise ValueError(FORGED_TEXT)
    except ValueError:
        log.exception("failed")
    logging.getLogger("library").warning("it said %s", FORGED_TEXT)
    written_lines = log_buffer.getvalue().splitlines()
    assert len(written_lines) == 4
    assert json.loads(written_lines[0])["error"] == FORGED_TEXT, "the value itself stays"
    for line in written_lines:
        assert _is_printable(line)
        formatted = format_log_line("run", line.encode())
        first, *rest = formatted.split("\n")
        assert all(part.startswith("    ") for part in rest), "only a traceback has more lines, and those are set in"
        assert all(_is_printable(part) for part in [first, *rest])
        assert "all is lost" in formatted


@pytest.mark.parametrize("line", [FORGED_TEXT.encode(), b"\x1b[31mplain", b"{not json\x9b", '{"a": "\u202e"}'.encode()])
def test_lines_that_are_not_json_are_escaped(line: bytes) -> None:
    assert _is_printable(format_log_line("postgres", line))


@given(st.text(max_size=200))
def test_any_text_becomes_one_line(text: str) -> None:
    escaped = escape_controls(text)
    assert len(escaped.splitlines()) <= 1
    assert "\x1b" not in escaped
    assert escape_controls(escaped) == escaped


def test_ordinary_text_is_not_changed() -> None:
    for text in ("plain", "日本語 é 👩\u200d💻", "a\tb", "می\u200cخواهم", "C:\\x"):
        assert escape_controls(text) == text
