"""Count the words of texts: a stream of counts, progress, and a total that the next run continues."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from paddock_context import Context


def handle(payload: dict[str, Any], context: Context) -> Iterator[dict[str, Any]]:
    texts = payload.get("texts") or ["the quick brown fox", "the lazy dog"]
    common: Counter[str] = Counter()
    for number, text in enumerate(texts, 1):
        words = text.lower().split()
        common.update(words)
        yield {"text": number, "words": len(words)}
        context.progress(number / len(texts), f"{number} of {len(texts)} texts")
    total = context.state.get("words", 0) + common.total()
    context.state["words"] = total
    print(f"{context.execution_id} counted {common.total()} words")
    return {"words": common.total(), "common": common.most_common(3), "words_of_all_runs": total}
