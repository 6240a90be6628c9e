"""What errors are searched by: their words, and what asks for them.

Words alone, because Postgres' parser of texts takes seconds for a few thousand characters of some others.
"""

import re
from collections.abc import Iterable
from typing import Final

MAX_SEARCH_WORDS: Final = 1000
MAX_WORD_CHARACTERS: Final = 64
MAX_SEARCH_TERMS: Final = 32

_WORD: Final = re.compile(r"\w+")
_TERM: Final = re.compile(r'(-?)("[^"]*"?|[^\s"]+)')


def _words(text: str) -> list[str]:
    return [word[:MAX_WORD_CHARACTERS] for word in _WORD.findall(text)]


def extract_words(texts: Iterable[str]) -> str:
    """The first `MOST` words of texts, one space apart, each cut at `LONGEST` characters."""
    kept: list[str] = []
    for text in texts:
        # A stack of megabytes has its words at its beginning, too.
        kept += _words(text[: MAX_SEARCH_WORDS * MAX_WORD_CHARACTERS])
        if len(kept) >= MAX_SEARCH_WORDS:
            break
    return " ".join(kept[:MAX_SEARCH_WORDS])


def build_search_query(asked: str) -> str:
    """A search as `websearch_to_tsquery` reads it: words, "phrases", -not, or.

    What is no word parts words, as in the texts: `pay.py` asks for the two side by side.
    """
    terms: list[str] = []
    for negated, term in _TERM.findall(asked)[:MAX_SEARCH_TERMS]:
        found = _words(term)[:MAX_SEARCH_TERMS]
        if found:
            terms.append(f'{negated}"{" ".join(found)}"' if len(found) > 1 or negated else found[0])
    return " ".join(terms)
