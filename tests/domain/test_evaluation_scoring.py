"""Test the scores of an evaluation: bounded for any text, and monotone in their inputs."""

from math import isfinite

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.evaluations.scoring import (
    HALLUCINATION_THRESHOLD,
    MAX_CLAIM_SENTENCES,
    MAX_SENTENCE_CHARACTERS,
    MAX_SOURCE_SENTENCES,
    ClientScores,
    EvaluationScores,
    score_evaluation,
    score_factual_support,
    score_probability,
    score_semantic_drift,
    score_uncertainty,
    select_sources,
    split_sentences,
)

MEGABYTE = 1_000_000


class SharedWordsSimilarity:
    """Replace embeddings: the similarity is the share of words that two texts have in common."""

    def __init__(self) -> None:
        self.call_count = 0

    def compare_texts(self, a: str, b: str) -> float:
        self.call_count += 1
        words_a, words_b = set(a.lower().split()), set(b.lower().split())
        return len(words_a & words_b) / len(words_a | words_b) if words_a and words_b else 0.0

    def score_nearest(self, questions: list[str], candidates: list[str]) -> list[float]:
        self.call_count += 1
        nearest = []
        for question in questions[:3]:
            nearest.append(max((self.compare_texts(question, candidate) for candidate in candidates[:3]), default=0.0))
        return nearest + [0.0] * (len(questions) - len(nearest))


class OutOfRangeSimilarity(SharedWordsSimilarity):
    """Return cosines slightly beyond their bounds, as floating point allows."""

    def compare_texts(self, a: str, b: str) -> float:
        return -0.25

    def score_nearest(self, questions: list[str], candidates: list[str]) -> list[float]:
        return [1.0000002] * len(questions)


TEXTS = st.text(max_size=200) | st.lists(
    st.sampled_from(["maybe", "I think", "Paris", "is", "3.14", "😀", ".", "!", "\n", "。", "’", " "]), max_size=40
).map(" ".join)
UNIT_FLOATS = st.floats(0, 1)
WORD_LISTS = st.lists(st.sampled_from(["paris", "is", "the", "capital", "of", "france"]), min_size=1, max_size=8)


def list_scores(scores: EvaluationScores) -> list[float]:
    return [scores.semantic_drift, scores.uncertainty, scores.factual_support, scores.hallucination_probability]


@given(TEXTS, TEXTS, st.lists(TEXTS, max_size=4))
def test_any_texts_give_scores_from_0_to_1(prompt: str, response: str, docs: list[str]) -> None:
    for similarity in (SharedWordsSimilarity(), OutOfRangeSimilarity()):
        scores = score_evaluation(prompt, response, docs, ClientScores(), similarity)
        assert all(isfinite(score) and 0.0 <= score <= 1.0 for score in list_scores(scores))
        assert scores.hallucinated == (scores.hallucination_probability > HALLUCINATION_THRESHOLD)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "Paris",
        "😀",
        "😀" * MEGABYTE,
        "x" * MEGABYTE,
        " " * MEGABYTE,
        "." * MEGABYTE,
        ". " * (MEGABYTE // 2),
        "I " * (MEGABYTE // 2),
        "maybe " * (MEGABYTE // 6),
        "I\tdon't\n" * (MEGABYTE // 8),
        "Paris is a city. " * (MEGABYTE // 17),
        "as far as i " * (MEGABYTE // 12),
        "\ud800",
    ],
    ids=lambda text: f"{text[:8]!r} {len(text)}",
)
def test_odd_and_huge_texts_give_scores_from_0_to_1(text: str) -> None:
    for prompt, response, docs in ((text, text, [text]), ("Why?", text, []), (text, "Because.", [text, "A doc."])):
        scores = score_evaluation(prompt, response, docs, ClientScores(), SharedWordsSimilarity())
        assert all(isfinite(score) and 0.0 <= score <= 1.0 for score in list_scores(scores))


@given(UNIT_FLOATS, UNIT_FLOATS, UNIT_FLOATS, UNIT_FLOATS)
def test_probability_rises_with_drift_and_uncertainty_and_falls_with_support(
    a: float, b: float, c: float, d: float
) -> None:
    low, high = sorted((a, b))
    assert score_probability(low, c, d) <= score_probability(high, c, d)
    assert score_probability(c, low, d) <= score_probability(c, high, d)
    assert score_probability(c, d, low) >= score_probability(c, d, high)


def test_probability_formula() -> None:
    assert score_probability(0.0, 0.0, 1.0) == 0.0
    assert score_probability(1.0, 1.0, 0.0) == 1.0
    assert score_probability(0.5, 0.0, 1.0) == 0.2
    assert score_probability(0.0, 0.5, 1.0) == 0.1
    assert score_probability(0.0, 0.0, 0.5) == 0.2
    # A probability at the threshold is not above it.
    assert score_probability(0.5, 0.25, 0.5) == HALLUCINATION_THRESHOLD
    client_scores = ClientScores(semantic_drift=0.5, uncertainty=0.25, factual_support=0.5)
    assert not score_evaluation("a", "b", [], client_scores, SharedWordsSimilarity()).hallucinated


@given(WORD_LISTS, st.sampled_from(["Maybe", "I think", "PERHAPS", "It  seems", "Likely", "I don’t know:", "might"]))
def test_a_hedge_raises_uncertainty(words: list[str], hedge: str) -> None:
    plain = " ".join(words) + "."
    assert score_uncertainty(plain) == 0.0
    assert 0.0 < score_uncertainty(f"{hedge} {plain}") <= 1.0
    assert score_uncertainty(f"{plain} {hedge} {plain}") < score_uncertainty(f"{hedge} {plain}")


@pytest.mark.parametrize(
    "text",
    ["Mighty oaks grow.", "In May, perhapsburg opened.", "The maybes.", "He likelys.", "I thinker.", "The think tank."],
)
def test_parts_of_words_are_not_hedges(text: str) -> None:
    assert score_uncertainty(text) == 0.0


def test_hedges_add_up_and_saturate() -> None:
    once, twice = score_uncertainty("It is maybe so."), score_uncertainty("I think it is maybe so.")
    assert 0.0 < once < twice == 1.0
    assert score_uncertainty("I don't know.") == score_uncertainty("I’m not sure, maybe, perhaps, possibly.") == 1.0
    assert 0.0 < score_uncertainty("It is likely so.") < once
    assert score_uncertainty("Not sure. Paris is a city.") == 0.5


@given(TEXTS, st.integers(0, 20))
def test_sentences_are_bounded_and_never_empty(text: str, max_sentences: int) -> None:
    scores = split_sentences(text, max_sentences)
    assert len(scores) <= max_sentences
    assert all(0 < len(sentence) <= MAX_SENTENCE_CHARACTERS and any(map(str.isalnum, sentence)) for sentence in scores)
    assert all(sentence in text for sentence in scores)


def test_sentences_are_split_at_punctuation_and_lines() -> None:
    assert split_sentences('Pi is 3.14. "Really?" Yes!\nA line\r\n\r\nEnd', 10) == [
        "Pi is 3.14.",
        '"Really?"',
        "Yes!",
        "A line",
        "End",
    ]
    assert split_sentences("巴黎是首都。它很大。", 10) == ["巴黎是首都。", "它很大。"]
    assert split_sentences("😀! ... -- _", 10) == []
    long = split_sentences("word " * 1000, 1000)
    assert " ".join(long) == ("word " * 1000).strip()


def test_long_document_leaves_room_for_other_documents() -> None:
    scores = select_sources("Why?", ["Long one. " * 10_000, "", "Short one."])
    assert len(scores) <= MAX_SOURCE_SENTENCES
    assert scores[-1] == "Short one."
    assert select_sources("Why? Tell.", ["", " 😀 "]) == ["Why?", "Tell."]
    assert len(select_sources("Why?", ["Doc."] * 100_000)) == MAX_SOURCE_SENTENCES


def test_claims_are_compared_with_documents_or_else_the_prompt() -> None:
    assert score_factual_support("x", "A b.", ["A b. C d."], SharedWordsSimilarity()) == 1.0
    assert score_factual_support("A b.", "A b.", ["C d."], SharedWordsSimilarity()) == 0.0
    assert score_factual_support("A b.", "A b.", [], SharedWordsSimilarity()) == 1.0
    assert score_factual_support("x", "A b. E f.", ["A b. C d."], SharedWordsSimilarity()) == 0.5


def test_empty_answer_is_no_hallucination_and_unsourced_answer_is_unsupported() -> None:
    for silent in ("", "😀", "..."):
        scores = score_evaluation("What is the capital?", silent, ["Paris."], ClientScores(), SharedWordsSimilarity())
        assert list_scores(scores) == [0.0, 0.0, 1.0, 0.0]
    assert score_semantic_drift("", "Hello.", SharedWordsSimilarity()) == 0.0
    assert score_factual_support("", "Hello.", [], SharedWordsSimilarity()) == 0.0


@given(
    st.builds(
        ClientScores,
        semantic_drift=st.none() | UNIT_FLOATS,
        uncertainty=st.none() | UNIT_FLOATS,
        factual_support=st.none() | UNIT_FLOATS,
        hallucination_probability=st.none() | UNIT_FLOATS,
        hallucinated=st.none() | st.booleans(),
    )
)
def test_sent_scores_are_kept_and_the_rest_derived(client_scores: ClientScores) -> None:
    scores = score_evaluation(
        "What is a city?", "Paris is maybe a city.", ["Paris is a city."], client_scores, SharedWordsSimilarity()
    )
    for field in ClientScores.__struct_fields__:
        if getattr(client_scores, field) is not None:
            assert getattr(scores, field) == getattr(client_scores, field)
    if client_scores.hallucination_probability is None:
        expected = score_probability(scores.semantic_drift, scores.uncertainty, scores.factual_support)
        assert scores.hallucination_probability == expected
    if client_scores.hallucinated is None:
        assert scores.hallucinated == (scores.hallucination_probability > HALLUCINATION_THRESHOLD)


def test_sent_scores_need_no_embeddings() -> None:
    similarity = SharedWordsSimilarity()
    score_evaluation("a", "b", [], ClientScores(semantic_drift=0.0, factual_support=1.0), similarity)
    assert similarity.call_count == 0


@pytest.mark.slow
def test_number_of_embedded_sentences_is_bounded() -> None:
    class BoundCheckingSimilarity(SharedWordsSimilarity):
        def score_nearest(self, questions: list[str], candidates: list[str]) -> list[float]:
            assert len(questions) <= MAX_CLAIM_SENTENCES
            assert len(candidates) <= MAX_SOURCE_SENTENCES
            return [1.0] * len(questions)

        def compare_texts(self, a: str, b: str) -> float:
            assert len(a) <= MAX_CLAIM_SENTENCES * (MAX_SENTENCE_CHARACTERS + 1)
            assert len(b) <= MAX_CLAIM_SENTENCES * (MAX_SENTENCE_CHARACTERS + 1)
            return 1.0

    huge = "Paris is a city " * 100_000
    assert (
        score_evaluation(huge, huge, [huge] * 10, ClientScores(), BoundCheckingSimilarity()).hallucination_probability
        == 0.0
    )
