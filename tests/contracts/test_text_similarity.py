"""Embeddings from the wheel: near for right answers, far for unrelated ones, and without network access."""

import logging
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from math import isfinite
from pathlib import Path
from typing import Any

import pytest

from domain.evaluations.scoring import ClientScores, score_evaluation
from infra import embeddings
from infra.embeddings import WordLlamaSimilarity

QUESTION = "What is the capital of France?"
DOCS = ["Paris is the capital and largest city of France."]


@pytest.fixture(scope="module")
def similarity() -> WordLlamaSimilarity:
    return WordLlamaSimilarity()


def test_right_answer_is_supported(similarity: WordLlamaSimilarity) -> None:
    scores = score_evaluation(QUESTION, "Paris is the capital of France.", DOCS, ClientScores(), similarity)
    assert not scores.hallucinated
    assert scores.factual_support > 0.85
    assert scores.semantic_drift < 0.3
    assert scores.hallucination_probability < 0.2


def test_unrelated_answer_is_hallucinated(similarity: WordLlamaSimilarity) -> None:
    scores = score_evaluation(QUESTION, "The moon is made of green cheese, maybe.", DOCS, ClientScores(), similarity)
    assert scores.hallucinated
    assert scores.factual_support < 0.2
    assert scores.semantic_drift > 0.8
    assert scores.uncertainty > 0.0


REFUNDS = ["Customers can return items within 30 days of purchase for a full refund."]
PASSWORDS = ["To reset a password, go to Settings > Security and press Reset password. A link is sent by e-mail."]
PLANTS = ["Plants use photosynthesis to convert sunlight, CO2 and water into glucose and oxygen."]


@pytest.mark.parametrize(
    ("prompt", "right", "wrong", "docs"),
    [
        (QUESTION, "Paris.", "The moon is made of green cheese.", DOCS),
        (
            "How do I reset my password?",
            "Open Settings, choose Security and click Reset password. You get an e-mail with a link.",
            "Penguins are flightless birds that live in the southern hemisphere.",
            PASSWORDS,
        ),
        (
            "What is our refund policy?",
            "You may return goods within 30 days for a full refund.",
            "I think the treaty of Westphalia ended the war.",
            REFUNDS,
        ),
        (
            "Explain photosynthesis.",
            "Photosynthesis is how plants turn light, water and carbon dioxide into sugar and oxygen.",
            "The stock market closed higher on Tuesday.",
            PLANTS,
        ),
        (
            "Who wrote Hamlet?",
            "Hamlet was written by William Shakespeare around 1600.",
            "Our quarterly revenue grew by twelve percent.",
            [],
        ),
    ],
)
def test_threshold_separates_right_from_unrelated_answers(
    prompt: str, right: str, wrong: str, docs: list[str], similarity: WordLlamaSimilarity
) -> None:
    good, bad = (score_evaluation(prompt, response, docs, ClientScores(), similarity) for response in (right, wrong))
    assert not good.hallucinated
    assert good.hallucination_probability < 0.35
    assert good.factual_support > 0.6
    assert bad.hallucinated
    assert bad.hallucination_probability > 0.7
    assert bad.factual_support < 0.15


def test_documented_blind_spots(similarity: WordLlamaSimilarity) -> None:
    for response in ("Paris is not the capital of France.", "Lyon is the capital of France."):
        assert not score_evaluation(QUESTION, response, DOCS, ClientScores(), similarity).hallucinated


def test_similarity_is_between_zero_and_one_and_symmetric(similarity: WordLlamaSimilarity) -> None:
    texts = ["", " ", "a", "Paris", "😀", "\ud800", "\x00", "巴黎", "yes " * 5000, "x" * 20_000]
    for first in texts:
        for second in texts:
            score = similarity.compare_texts(first, second)
            assert isfinite(score)
            assert 0.0 <= score <= 1.0
            assert score == similarity.compare_texts(second, first)
    assert similarity.compare_texts("Paris is big.", "Paris is big.") == 1.0
    assert similarity.compare_texts("", "") == 0.0


def test_best_score_is_the_highest_of_all_pairs(similarity: WordLlamaSimilarity) -> None:
    questions = [f"City number {number} lies in France." for number in range(600)]
    candidates = ["Paris lies in France.", "City number 7 lies in France.", "Penguins swim."]
    best = similarity.score_nearest(questions, candidates)
    assert len(best) == len(questions)
    assert best[7] == 1.0
    for row in (0, 255, 256, 599):
        highest = max(similarity.compare_texts(questions[row], candidate) for candidate in candidates)
        assert best[row] == pytest.approx(highest, abs=2e-6)
    assert similarity.score_nearest(questions[:2], []) == [0.0, 0.0]
    assert similarity.score_nearest([], candidates) == []


@pytest.mark.parametrize("text", ["Paris is a city. " * 60_000, "x" * 1_000_000, "😀" * 1_000_000, ""])
def test_megabytes_are_scored(text: str, similarity: WordLlamaSimilarity) -> None:
    scores = score_evaluation(text, text, [text, "Paris."], ClientScores(), similarity)
    assert 0.0 <= scores.hallucination_probability <= 1.0


def test_new_instance_gives_the_same_scores(similarity: WordLlamaSimilarity) -> None:
    questions = ["Where is Paris?", "Who wrote Hamlet?"]
    assert WordLlamaSimilarity().score_nearest(questions, DOCS) == similarity.score_nearest(questions, DOCS)


def test_threads_load_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Any] = []
    load = embeddings._load_model

    def count_loads() -> Any:
        loads.append(load())
        return loads[-1]

    monkeypatch.setattr(embeddings, "_load_model", count_loads)
    shared = WordLlamaSimilarity()
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: shared.compare_texts(QUESTION, DOCS[0]), range(64)))
    assert len(loads) == 1
    assert len(set(answers)) == 1


def test_no_socket_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_network(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was tried")

    for method in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, method, refuse_network)
    monkeypatch.setattr(socket, "getaddrinfo", refuse_network)
    assert WordLlamaSimilarity().compare_texts(QUESTION, DOCS[0]) > 0.5


FRESH_PROCESS_PROGRAM = """
import socket, logging
def refused(*_, **__): raise SystemExit("the network was tried")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refused
from infra.embeddings import WordLlamaSimilarity
assert WordLlamaSimilarity().compare_texts("Paris", "Paris") == 1.0
assert logging.getLogger().handlers == [], logging.getLogger().handlers
assert logging.getLogger().level == logging.WARNING
"""


def test_fresh_process_loads_it_without_network_or_logging_changes(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = {"HOME": str(tmp_path), "PYTHONPATH": str(root)}
    run = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS_PROGRAM], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_logging_handlers_are_unchanged(similarity: WordLlamaSimilarity) -> None:
    handlers = list(logging.getLogger().handlers)
    similarity.compare_texts("a", "b")
    assert logging.getLogger().handlers == handlers


def test_missing_weights_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match="wordllama"):
        WordLlamaSimilarity().compare_texts("a", "b")
