"""Compare texts by static word vectors: the 16 MB that come inside the wheel `wordllama`.

A text is the mean of the vectors of its tokens, and similarity is the cosine of two means, with negative
cosines counted as 0. That recognises what a text is about. It cannot recognise

- negation: "Paris is not the capital" is as near to its source as "Paris is the capital";
- numbers, dates and names swapped for others of their kind: "in 1889" and "in 1989" are near, so are
  Lyon and Paris in the same sentence;
- word order and who did what to whom, since a mean has no order;
- answers that need their question: a bare "Yes." or "4" is near to nothing, and so looks unsupported;
- prompts that name no subject: after "Summarise the text." every answer looks like drift.

Cosines are used as they are. On questions with right answers they were measured at .5 to .85 to the question
and at .6 to .95 to the sources, on unrelated answers below .15 to both; `tests/contracts/test_embeddings.py`
holds them to that. With the weights of `domain.evaluations.scoring` these fall on both sides of its threshold.
"""

import logging
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# Tokenising takes hundreds of times the memory of the text while it lasts.
MAX_PIECE_CHARACTERS: Final = 4096
MAX_PRODUCT_ROWS: Final = 256

Vectors = NDArray[np.float32]


class WordLlamaSimilarity:
    """Compare texts as `domain.evaluations.TextSimilarity`. Threads may share one; the model is loaded on first use.

    The model takes about 85 MB once loaded. It never uses the network. The same texts give the same numbers.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._model: Any = None

    def compare_texts(self, first: str, second: str) -> float:
        """Return a similarity from 0 to 1; 0 where a text is empty."""
        return self.score_nearest([first], [second])[0]

    def score_nearest(self, questions: list[str], candidates: list[str]) -> list[float]:
        """Return for each question the similarity of the nearest candidate, 0 to 1; all 0 without candidates."""
        if not questions or not candidates:
            return [0.0] * len(questions)
        rows, columns = self._build_vectors(questions), self._build_vectors(candidates).T
        nearest = [
            (rows[start : start + MAX_PRODUCT_ROWS] @ columns).max(axis=1)
            for start in range(0, len(rows), MAX_PRODUCT_ROWS)
        ]
        # The last bits of a product depend on the shapes multiplied; rounding hides them.
        return [round(float(cosine), 6) for cosine in np.concatenate(nearest).clip(0.0, 1.0)]

    def _build_vectors(self, texts: Sequence[str]) -> Vectors:
        """Return one row of length 1 per text, or of length 0 for a text without tokens."""
        model = self._get_model()
        sums = np.zeros((len(texts), model.embedding.shape[1]), dtype=np.float32)
        for row, text in enumerate(texts):
            for piece in _split_pieces(text):
                # One text at a time: a batch would start threads, which do not survive a fork.
                tokens = model.tokenizer.encode(piece, add_special_tokens=False).ids
                sums[row] += model.embedding[tokens].sum(axis=0)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        sums /= np.where(lengths > 0.0, lengths, 1.0)
        return sums

    def _get_model(self) -> Any:
        with self._lock:
            if self._model is None:
                self._model = _load_model()
            return self._model


def _split_pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), MAX_PIECE_CHARACTERS):
        # The tokenizer takes no lone surrogates.
        yield text[start : start + MAX_PIECE_CHARACTERS].encode("utf-8", "replace").decode("utf-8")


def _load_model() -> Any:
    """Load the model from the wheel's own folder. Errors: `FileNotFoundError` if the wheel has no weights."""
    spec = find_spec("wordllama")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("The wheel `wordllama` is not installed.")
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    from wordllama import WordLlama  # type: ignore[import-untyped, unused-ignore]

    # Its import configures logging for the whole process. We undo that.
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)
    root.setLevel(level)
    return WordLlama.load(cache_dir=Path(spec.origin).parent, disable_download=True)
