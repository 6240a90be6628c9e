"""The metrics of an evaluation: bounded whatever the texts, and monotone in what they are made of."""

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


class Shared:
    """A stand-in for embeddings: the share of words two texts have in common."""

    def __init__(self) -> None:
        self.asked = 0

    def compare_texts(self, a: str, b: str) -> float:
        self.asked += 1
        one, other = set(a.lower().split()), set(b.lower().split())
        return len(one & other) / len(one | other) if one and other else 0.0

    def score_nearest(self, questions: list[str], candidates: list[str]) -> list[float]:
        self.asked += 1
        nearest = []
        for question in questions[:3]:
            nearest.append(max((self.compare_texts(question, one) for one in candidates[:3]), default=0.0))
        return nearest + [0.0] * (len(questions) - len(nearest))


class Wild(Shared):
    """Embeddings whose cosines stray beyond their bounds, as floating point lets them."""

    def compare_texts(self, a: str, b: str) -> float:
        return -0.25

    def score_nearest(self, questions: list[str], candidates: list[str]) -> list[float]:
        return [1.0000002] * len(questions)


texts = st.text(max_size=200) | st.lists(
    st.sampled_from(["maybe", "I think", "Paris", "is", "3.14", "😀", ".", "!", "\n", "。", "’", " "]), max_size=40
).map(" ".join)
unit = st.floats(0, 1)
words = st.lists(st.sampled_from(["paris", "is", "the", "capital", "of", "france"]), min_size=1, max_size=8)


def numbers(made: EvaluationScores) -> list[float]:
    return [made.semantic_drift, made.uncertainty, made.factual_support, made.hallucination_probability]


@given(texts, texts, st.lists(texts, max_size=4))
def test_any_texts_give_numbers_from_0_to_1(prompt: str, response: str, docs: list[str]) -> None:
    for nearness in (Shared(), Wild()):
        made = score_evaluation(prompt, response, docs, ClientScores(), nearness)
        assert all(isfinite(one) and 0.0 <= one <= 1.0 for one in numbers(made))
        assert made.hallucinated == (made.hallucination_probability > HALLUCINATION_THRESHOLD)


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
def test_odd_and_huge_texts(text: str) -> None:
    for prompt, response, docs in ((text, text, [text]), ("Why?", text, []), (text, "Because.", [text, "A doc."])):
        made = score_evaluation(prompt, response, docs, ClientScores(), Shared())
        assert all(isfinite(one) and 0.0 <= one <= 1.0 for one in numbers(made))


@given(unit, unit, unit, unit)
def test_probability_rises_with_drift_and_doubt_and_falls_with_support(a: float, b: float, c: float, d: float) -> None:
    low, high = sorted((a, b))
    assert score_probability(low, c, d) <= score_probability(high, c, d)
    assert score_probability(c, low, d) <= score_probability(c, high, d)
    assert score_probability(c, d, low) >= score_probability(c, d, high)


def test_the_formula() -> None:
    assert score_probability(0.0, 0.0, 1.0) == 0.0
    assert score_probability(1.0, 1.0, 0.0) == 1.0
    assert score_probability(0.5, 0.0, 1.0) == 0.2
    assert score_probability(0.0, 0.5, 1.0) == 0.1
    assert score_probability(0.0, 0.0, 0.5) == 0.2
    # On the threshold is not above it.
    assert score_probability(0.5, 0.25, 0.5) == HALLUCINATION_THRESHOLD
    kept = ClientScores(semantic_drift=0.5, uncertainty=0.25, factual_support=0.5)
    assert not score_evaluation("a", "b", [], kept, Shared()).hallucinated


@given(words, st.sampled_from(["Maybe", "I think", "PERHAPS", "It  seems", "Likely", "I don’t know:", "might"]))
def test_a_hedge_raises_uncertainty(said: list[str], hedge: str) -> None:
    plain = " ".join(said) + "."
    assert score_uncertainty(plain) == 0.0
    assert 0.0 < score_uncertainty(f"{hedge} {plain}") <= 1.0
    assert score_uncertainty(f"{plain} {hedge} {plain}") < score_uncertainty(f"{hedge} {plain}")


@pytest.mark.parametrize(
    "text",
    ["Mighty oaks grow.", "In May, perhapsburg opened.", "The maybes.", "He likelys.", "I thinker.", "The think tank."],
)
def test_parts_of_words_are_no_hedges(text: str) -> None:
    assert score_uncertainty(text) == 0.0


def test_hedges_add_up_and_saturate() -> None:
    once, twice = score_uncertainty("It is maybe so."), score_uncertainty("I think it is maybe so.")
    assert 0.0 < once < twice == 1.0
    assert score_uncertainty("I don't know.") == score_uncertainty("I’m not sure, maybe, perhaps, possibly.") == 1.0
    assert 0.0 < score_uncertainty("It is likely so.") < once
    assert score_uncertainty("Not sure. Paris is a city.") == 0.5


@given(texts, st.integers(0, 20))
def test_sentences_are_bounded_and_never_empty(text: str, most: int) -> None:
    made = split_sentences(text, most)
    assert len(made) <= most
    assert all(0 < len(one) <= MAX_SENTENCE_CHARACTERS and any(map(str.isalnum, one)) for one in made)
    assert all(one in text for one in made)


def test_sentences_end_where_a_reader_would_say() -> None:
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


def test_a_long_document_leaves_room_for_the_others() -> None:
    made = select_sources("Why?", ["Long one. " * 10_000, "", "Short one."])
    assert len(made) <= MAX_SOURCE_SENTENCES
    assert made[-1] == "Short one."
    assert select_sources("Why? Tell.", ["", " 😀 "]) == ["Why?", "Tell."]
    assert len(select_sources("Why?", ["Doc."] * 100_000)) == MAX_SOURCE_SENTENCES


def test_claims_are_held_to_the_documents_else_to_the_prompt() -> None:
    assert score_factual_support("x", "A b.", ["A b. C d."], Shared()) == 1.0
    assert score_factual_support("A b.", "A b.", ["C d."], Shared()) == 0.0
    assert score_factual_support("A b.", "A b.", [], Shared()) == 1.0
    assert score_factual_support("x", "A b. E f.", ["A b. C d."], Shared()) == 0.5


def test_saying_nothing_is_no_hallucination_and_saying_something_without_sources_is_unsupported() -> None:
    for silent in ("", "😀", "..."):
        made = score_evaluation("What is the capital?", silent, ["Paris."], ClientScores(), Shared())
        assert numbers(made) == [0.0, 0.0, 1.0, 0.0]
    assert score_semantic_drift("", "Hello.", Shared()) == 0.0
    assert score_factual_support("", "Hello.", [], Shared()) == 0.0


@given(
    st.builds(
        ClientScores,
        semantic_drift=st.none() | unit,
        uncertainty=st.none() | unit,
        factual_support=st.none() | unit,
        hallucination_probability=st.none() | unit,
        hallucinated=st.none() | st.booleans(),
    )
)
def test_what_was_sent_is_kept_and_the_rest_follows_from_it(sent: ClientScores) -> None:
    made = score_evaluation("What is a city?", "Paris is maybe a city.", ["Paris is a city."], sent, Shared())
    for field in ClientScores.__struct_fields__:
        if getattr(sent, field) is not None:
            assert getattr(made, field) == getattr(sent, field)
    if sent.hallucination_probability is None:
        expected = score_probability(made.semantic_drift, made.uncertainty, made.factual_support)
        assert made.hallucination_probability == expected
    if sent.hallucinated is None:
        assert made.hallucinated == (made.hallucination_probability > HALLUCINATION_THRESHOLD)


def test_nothing_is_embedded_that_was_sent() -> None:
    nearness = Shared()
    score_evaluation("a", "b", [], ClientScores(semantic_drift=0.0, factual_support=1.0), nearness)
    assert nearness.asked == 0


def test_the_work_is_bounded() -> None:
    class Counting(Shared):
        def score_nearest(self, questions: list[str], candidates: list[str]) -> list[float]:
            assert len(questions) <= MAX_CLAIM_SENTENCES
            assert len(candidates) <= MAX_SOURCE_SENTENCES
            return [1.0] * len(questions)

        def compare_texts(self, a: str, b: str) -> float:
            assert len(a) <= MAX_CLAIM_SENTENCES * (MAX_SENTENCE_CHARACTERS + 1)
            assert len(b) <= MAX_CLAIM_SENTENCES * (MAX_SENTENCE_CHARACTERS + 1)
            return 1.0

    huge = "Paris is a city " * 100_000
    assert score_evaluation(huge, huge, [huge] * 10, ClientScores(), Counting()).hallucination_probability == 0.0
