"""How far an answer strays from its question and its sources, as five numbers.

    probability  = .4 · (1 - factual support) + .4 · semantic drift + .2 · uncertainty
    hallucinated = probability > .45

Drift and support come from a `Similarity`, which stands outside; uncertainty is counted here, from words.
The numbers rank answers for a person to look at. They are no judgement of truth.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from math import fsum
from typing import Final, Protocol

import msgspec

HALLUCINATION_THRESHOLD: Final = 0.45
# A matrix of claims by sources, which keeps an evaluation of megabytes within seconds and tens of megabytes.
MAX_CLAIM_SENTENCES: Final = 300
MAX_SOURCE_SENTENCES: Final = 1500
MAX_SENTENCE_CHARACTERS: Final = 600

# One of the first settles a sentence as a guess; the last are also how careful writers state facts.
_WEIGHTS: Final[dict[float, tuple[str, ...]]] = {
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
_WEIGHT: Final = {phrase: weight for weight, phrases in _WEIGHTS.items() for phrase in phrases}
# Literals without repetition, the longest first: every position of the text is tried once per phrase at most.
_HEDGE: Final = re.compile(
    r"(?<![\w'])(?:" + "|".join(sorted(map(re.escape, _WEIGHT), key=len, reverse=True)) + r")(?![\w'])"
)
_BREAK: Final = re.compile(r"(?:(?<=[.!?…])|(?<=[.!?…][\"'”’)\]]))\s+|(?<=[。！？])|[\r\n]+")  # noqa: RUF001
_SPACE: Final = re.compile(r"\s")
_WORD: Final = re.compile(r"[^\W_]")


class EvaluationScores(msgspec.Struct, frozen=True, kw_only=True):
    """The metrics of one evaluation, each a number from 0 to 1; `hallucinated` is a verdict on the last."""

    semantic_drift: float
    uncertainty: float
    factual_support: float
    hallucination_probability: float
    hallucinated: bool


class ClientScores(msgspec.Struct, frozen=True, kw_only=True):
    """The metrics that a client measured by itself. None is one that it left to us."""

    semantic_drift: float | None = None
    uncertainty: float | None = None
    factual_support: float | None = None
    hallucination_probability: float | None = None
    hallucinated: bool | None = None


class TextSimilarity(Protocol):
    """How near texts are in meaning: 1 for the same, 0 for strangers. Blocks: call it in a thread."""

    def compare_texts(self, a: str, b: str) -> float:
        """From 0 to 1; 0 where a text is empty."""
        ...

    def score_nearest(self, questions: list[str], candidates: list[str]) -> list[float]:
        """For each question the similarity of the nearest candidate, 0 to 1; all 0 without candidates."""
        ...


def split_sentences(text: str, most: int) -> list[str]:
    """The first `most` sentences of a text, none longer than `LONGEST` characters and none without a word.

    Punctuation and emoji by themselves say nothing that could be true, so they are left out. What runs on
    without an end is cut at a space. Reads no further into the text than it has to.
    """
    return list(islice(_sentences(text), most))


def _sentences(text: str) -> Iterator[str]:
    for start, end in _spans(text):
        while start < end:
            stop = min(start + MAX_SENTENCE_CHARACTERS, end)
            if stop < end:
                space = max(text.rfind(" ", start, stop), text.rfind("\n", start, stop))
                stop = space + 1 if space > start else stop
            piece = text[start:stop].strip()
            if _WORD.search(piece):
                yield piece
            start = stop


def _spans(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for found in _BREAK.finditer(text):
        yield start, found.start()
        start = found.end()
    yield start, len(text)


def score_uncertainty(response: str) -> float:
    """How much of a response is hedged, 0 to 1: the mean over its sentences, each counting up to 1.

    A sentence adds up the weights of its hedges, so that one full "I don't know" or two cases of "maybe"
    make it wholly uncertain. English only; other languages count as certain. Linear in the text.
    """
    total, count = 0.0, 0
    for sentence in _sentences(response):
        plain = " ".join(sentence.lower().replace("’", "'").split())  # noqa: RUF001
        total += min(1.0, fsum(_WEIGHT[hedge] for hedge in _HEDGE.findall(plain)))
        count += 1
    return round(_bounded(total / count), 6) if count else 0.0


def select_sources(prompt: str, retrieved_docs: Sequence[str]) -> list[str]:
    """The sentences that may support an answer: those of the documents, else those of the prompt.

    Every document has an equal share of `MOST_SOURCES`, so that a long one cannot crowd out the others.
    """
    told = [doc for doc in retrieved_docs[:MAX_SOURCE_SENTENCES] if _WORD.search(doc)]
    share = MAX_SOURCE_SENTENCES // max(1, len(told))
    return [sentence for doc in told or [prompt] for sentence in split_sentences(doc, share)]


def score_factual_support(prompt: str, response: str, retrieved_docs: Sequence[str], nearness: TextSimilarity) -> float:
    """The mean over the claims of a response of how near the nearest source comes, 0 to 1.

    A response without words claims nothing and is 1; claims without any source to hold them to are 0.
    """
    claims = split_sentences(response, MAX_CLAIM_SENTENCES)
    if not claims:
        return 1.0
    nearest = nearness.score_nearest(claims, select_sources(prompt, retrieved_docs))
    return round(_bounded(fsum(map(_bounded, nearest)) / len(claims)), 6)


def score_semantic_drift(prompt: str, response: str, nearness: TextSimilarity) -> float:
    """How far a response is from its prompt in meaning, 0 to 1. Where one has no words, nothing drifted: 0.

    Texts beyond a few hundred sentences are measured by their beginning.
    """
    asked, answered = (" ".join(split_sentences(text, MAX_CLAIM_SENTENCES)) for text in (prompt, response))
    if not asked or not answered:
        return 0.0
    return round(_bounded(1.0 - nearness.compare_texts(asked, answered)), 6)


def score_probability(drift: float, uncertain: float, support: float) -> float:
    """How likely a response is made up, 0 to 1, from the other three."""
    return round(_bounded(0.4 * (1.0 - support) + 0.4 * drift + 0.2 * uncertain), 6)


def score_evaluation(
    prompt: str, response: str, retrieved_docs: Sequence[str], sent: ClientScores, nearness: TextSimilarity
) -> EvaluationScores:
    """All metrics of an evaluation. What the client sent stays as sent, and the rest follows from it.

    Takes milliseconds for ordinary texts and seconds for megabytes: call it in a thread.
    """
    drift, support, uncertain = sent.semantic_drift, sent.factual_support, sent.uncertainty
    if drift is None:
        drift = score_semantic_drift(prompt, response, nearness)
    if support is None:
        support = score_factual_support(prompt, response, retrieved_docs, nearness)
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


def _bounded(value: float) -> float:
    return min(1.0, max(0.0, value))
