"""Score how far an answer strays from its question and its sources, as five numbers.

    probability  = .4 · (1 - factual support) + .4 · semantic drift + .2 · uncertainty
    hallucinated = probability > .45

Drift and support come from a `TextSimilarity` outside the domain; uncertainty is counted here, from words.
The numbers rank answers for a person to review. They do not judge truth.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from math import fsum
from typing import Final, Protocol

import msgspec

HALLUCINATION_THRESHOLD: Final = 0.45
# These bound the matrix of claims by sources: an evaluation of megabytes takes seconds and tens of megabytes.
MAX_CLAIM_SENTENCES: Final = 300
MAX_SOURCE_SENTENCES: Final = 1500
MAX_SENTENCE_CHARACTERS: Final = 600

# One hedge of the first group makes a sentence a guess; careful writers also use the last group to state facts.
_PHRASES_BY_WEIGHT: Final[dict[float, tuple[str, ...]]] = {
    1.0: (
        "i do not know",
        "i don't know",
        "i have no idea",
        "i'm guessing",
        "i am guessing",
        "i can't say",
        "i cannot say",
        "cannot be sure",
        "can't be sure",
        "not sure",
        "not certain",
        "uncertain",
        "unsure",
        "unclear",
        "hard to say",
        "wild guess",
    ),
    0.6: (
        "apparently",
        "as far as i can tell",
        "as far as i know",
        "could be",
        "could have",
        "i assume",
        "i believe",
        "i guess",
        "i suppose",
        "i think",
        "if i remember correctly",
        "if i recall correctly",
        "it seems",
        "kind of",
        "may be",
        "may have",
        "maybe",
        "might",
        "perhaps",
        "possibly",
        "presumably",
        "seems to",
        "sort of",
        "supposedly",
        "to my knowledge",
    ),
    0.4: (
        "allegedly",
        "appears to",
        "in my opinion",
        "likely",
        "potentially",
        "probably",
        "reportedly",
        "roughly",
        "suggests that",
        "tends to",
        "unlikely",
    ),
}
_PHRASE_WEIGHTS: Final = {phrase: weight for weight, phrases in _PHRASES_BY_WEIGHT.items() for phrase in phrases}
# Literals without repetition, the longest first: every position of the text is tried once per phrase at most.
_HEDGE_PATTERN: Final = re.compile(
    r"(?<![\w'])(?:" + "|".join(sorted(map(re.escape, _PHRASE_WEIGHTS), key=len, reverse=True)) + r")(?![\w'])"
)
_SENTENCE_BREAK: Final = re.compile(r"(?:(?<=[.!?…])|(?<=[.!?…][\"'”’)\]]))\s+|(?<=[。！？])|[\r\n]+")  # noqa: RUF001
_SPACE_PATTERN: Final = re.compile(r"\s")
_WORD_PATTERN: Final = re.compile(r"[^\W_]")


class EvaluationScores(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the metrics of one evaluation, each from 0 to 1; `hallucinated` is a verdict on the last."""

    semantic_drift: float
    uncertainty: float
    factual_support: float
    hallucination_probability: float
    hallucinated: bool


class ClientScores(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the metrics that a client measured. None marks one that it leaves to us."""

    semantic_drift: float | None = None
    uncertainty: float | None = None
    factual_support: float | None = None
    hallucination_probability: float | None = None
    hallucinated: bool | None = None


class TextSimilarity(Protocol):
    """Compare texts in meaning: 1 for the same, 0 for unrelated ones. Blocks: call it in a thread."""

    def compare_texts(self, a: str, b: str) -> float:
        """Return a similarity from 0 to 1; 0 where a text is empty."""
        ...

    def score_nearest(self, questions: list[str], candidates: list[str]) -> list[float]:
        """Return for each question the similarity of the nearest candidate, 0 to 1; all 0 without candidates."""
        ...


def split_sentences(text: str, limit: int) -> list[str]:
    """Return the first `limit` sentences of a text, each with a word and of at most `MAX_SENTENCE_CHARACTERS`.

    Punctuation and emoji alone state nothing, so they are left out. A sentence that does not end is cut at a
    space. Reads only as much of the text as it needs.
    """
    return list(islice(_iterate_sentences(text), limit))


def _iterate_sentences(text: str) -> Iterator[str]:
    for start, end in _iterate_spans(text):
        while start < end:
            stop = min(start + MAX_SENTENCE_CHARACTERS, end)
            if stop < end:
                space = max(text.rfind(" ", start, stop), text.rfind("\n", start, stop))
                stop = space + 1 if space > start else stop
            piece = text[start:stop].strip()
            if _WORD_PATTERN.search(piece):
                yield piece
            start = stop


def _iterate_spans(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for match in _SENTENCE_BREAK.finditer(text):
        yield start, match.start()
        start = match.end()
    yield start, len(text)


def score_uncertainty(response: str) -> float:
    """Score how much of a response is hedged, 0 to 1: the mean over its sentences, each counting up to 1.

    A sentence adds up the weights of its hedges, so that one full "I don't know" or two cases of "maybe"
    make it wholly uncertain. English only; other languages count as certain. Linear in the text.
    """
    total, count = 0.0, 0
    for sentence in _iterate_sentences(response):
        plain = " ".join(sentence.lower().replace("’", "'").split())  # noqa: RUF001
        total += min(1.0, fsum(_PHRASE_WEIGHTS[hedge] for hedge in _HEDGE_PATTERN.findall(plain)))
        count += 1
    return round(_clamp_share(total / count), 6) if count else 0.0


def select_sources(prompt: str, retrieved_docs: Sequence[str]) -> list[str]:
    """Select the sentences that may support an answer: those of the documents, else those of the prompt.

    Every document has an equal share of `MOST_SOURCES`, so that a long one cannot crowd out the others.
    """
    documents = [doc for doc in retrieved_docs[:MAX_SOURCE_SENTENCES] if _WORD_PATTERN.search(doc)]
    share = MAX_SOURCE_SENTENCES // max(1, len(documents))
    return [sentence for doc in documents or [prompt] for sentence in split_sentences(doc, share)]


def score_factual_support(
    prompt: str, response: str, retrieved_docs: Sequence[str], similarity: TextSimilarity
) -> float:
    """Score the mean over the claims of a response of the similarity to the nearest source, 0 to 1.

    A response without words makes no claims and scores 1; claims without any source score 0.
    """
    claims = split_sentences(response, MAX_CLAIM_SENTENCES)
    if not claims:
        return 1.0
    nearest = similarity.score_nearest(claims, select_sources(prompt, retrieved_docs))
    return round(_clamp_share(fsum(map(_clamp_share, nearest)) / len(claims)), 6)


def score_semantic_drift(prompt: str, response: str, similarity: TextSimilarity) -> float:
    """Score how far a response is from its prompt in meaning, 0 to 1; 0 where one of them has no words.

    Texts beyond a few hundred sentences are measured by their beginning.
    """
    asked, answered = (" ".join(split_sentences(text, MAX_CLAIM_SENTENCES)) for text in (prompt, response))
    if not asked or not answered:
        return 0.0
    return round(_clamp_share(1.0 - similarity.compare_texts(asked, answered)), 6)


def score_probability(drift: float, uncertain: float, support: float) -> float:
    """Score how likely a response is made up, 0 to 1, from the other three scores."""
    return round(_clamp_share(0.4 * (1.0 - support) + 0.4 * drift + 0.2 * uncertain), 6)


def score_evaluation(
    prompt: str, response: str, retrieved_docs: Sequence[str], sent: ClientScores, similarity: TextSimilarity
) -> EvaluationScores:
    """Score an evaluation. Metrics that the client sent stay, and the others follow from them.

    Takes milliseconds for ordinary texts and seconds for megabytes: call it in a thread.
    """
    drift, support, uncertain = sent.semantic_drift, sent.factual_support, sent.uncertainty
    if drift is None:
        drift = score_semantic_drift(prompt, response, similarity)
    if support is None:
        support = score_factual_support(prompt, response, retrieved_docs, similarity)
    if uncertain is None:
        uncertain = score_uncertainty(response)
    likely = sent.hallucination_probability
    if likely is None:
        likely = score_probability(drift, uncertain, support)
    return EvaluationScores(
        semantic_drift=drift,
        uncertainty=uncertain,
        factual_support=support,
        hallucination_probability=likely,
        hallucinated=likely > HALLUCINATION_THRESHOLD if sent.hallucinated is None else sent.hallucinated,
    )


def _clamp_share(value: float) -> float:
    return min(1.0, max(0.0, value))
