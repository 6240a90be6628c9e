"""Extract the words by which texts are searched, and build queries from what users search for.

Words alone, because Postgres' parser of texts takes seconds for a few thousand characters of some other texts.
"""

import re
from collections.abc import Iterable
from typing import Final

MAX_SEARCH_WORDS: Final = 1000
MAX_WORD_CHARACTERS: Final = 64
MAX_SEARCH_TERMS: Final = 32

_WORD_PATTERN: Final = re.compile(r"\w+")
_TERM_PATTERN: Final = re.compile(r'(-?)("[^"]*"?|[^\s"]+)')


def split_words(text: str) -> list[str]:
    """Return the words of a text, each cut at `MAX_WORD_CHARACTERS`."""
    return [word[:MAX_WORD_CHARACTERS] for word in _WORD_PATTERN.findall(text)]


def extract_words(texts: Iterable[str]) -> str:
    """Return the first `MAX_SEARCH_WORDS` words of texts, one space apart, each cut at `MAX_WORD_CHARACTERS`."""
    words: list[str] = []
    for text in texts:
        # The words of a stack of megabytes are at its beginning, too.
        words += split_words(text[: MAX_SEARCH_WORDS * MAX_WORD_CHARACTERS])
        if len(words) >= MAX_SEARCH_WORDS:
            break
    return " ".join(words[:MAX_SEARCH_WORDS])


def build_search_query(search: str) -> str:
    """Build a query for `websearch_to_tsquery` from a search: words, "phrases", -not, or.

    Characters that are no words separate words, as in the texts: `pay.py` searches for the two side by side.
    """
    terms: list[str] = []
    for negation, term in _TERM_PATTERN.findall(search)[:MAX_SEARCH_TERMS]:
        words = split_words(term)[:MAX_SEARCH_TERMS]
        if words:
            terms.append(f'{negation}"{" ".join(words)}"' if len(words) > 1 or negation else words[0])
    return " ".join(terms)


def split_search(search: str) -> tuple[list[str], list[str]]:
    """Return the words that a search asks for, and those behind a `-` that it excludes, each once.

    A phrase is its words.
    """
    required, excluded = dict[str, None](), dict[str, None]()
    for negation, term in _TERM_PATTERN.findall(search):
        words = dict.fromkeys(split_words(term))
        (excluded if negation else required).update(words)
    return list(required), list(excluded)
