"""A summary without a model: sentences are scored by how often their words' stems occur in the text."""

import logging
import re
import sys
from collections import Counter

import snowballstemmer

logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s:%(name)s:%(message)s")
log = logging.getLogger("summarizer")

_stemmer = snowballstemmer.stemmer("english")
_COMMON = set(
    """
    a an and are as at be but by for from has have in is it its of on or that the this to was were will with
    """.split()
)


class NothingToSummarize(ValueError):
    """The payload has no text."""


def _words(text: str) -> list[str]:
    return [_stemmer.stemWord(word) for word in re.findall(r"[a-z']+", text.lower()) if word not in _COMMON]


def handle(payload: dict) -> dict:
    text = payload.get("text", "").strip()
    if not text:
        raise NothingToSummarize("The payload needs a `text` with at least one sentence.")
    wanted = int(payload.get("sentences", 2))
    sentences = re.split(r"(?<=[.!?])\s+", text)
    log.info("read %d sentences", len(sentences))
    weight = Counter(_words(text))
    scores = []
    for number, sentence in enumerate(sentences):
        words = _words(sentence)
        scores.append((sum(weight[word] for word in words) / (len(words) or 1), number))
        print(f"sentence {number + 1}: {scores[-1][0]:.2f}")
    best = sorted(number for _, number in sorted(scores, reverse=True)[:wanted])
    if len(sentences) <= wanted:
        log.warning("the text is as short as its summary")
    return {"summary": " ".join(sentences[number] for number in best), "kept": len(best), "of": len(sentences)}
