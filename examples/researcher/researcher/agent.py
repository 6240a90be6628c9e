"""A short report on a question, written by a model as it streams in. No key and no address in sight."""

import time

import openai

MODEL = "smollm2"
ASKED = "You are a careful researcher. Answer in three short sentences of plain text."


class NothingToResearch(ValueError):
    """The payload has no question."""


def handle(payload: dict) -> dict:
    question = str(payload.get("question") or "").strip()
    if not question:
        raise NothingToResearch("The payload needs a `question`.")
    began, pieces, usage = time.monotonic(), [], None
    client = openai.OpenAI()
    with client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "system", "content": ASKED}, {"role": "user", "content": question}],
        max_tokens=int(payload.get("max_tokens", 120)),
        temperature=0.2,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                if not pieces:
                    print(f"first words after {time.monotonic() - began:.2f} s")
                pieces.append(chunk.choices[0].delta.content)
            usage = chunk.usage or usage
    report = "".join(pieces).strip()
    print(f"{len(pieces)} pieces in {time.monotonic() - began:.2f} s")
    return {
        "question": question,
        "report": report,
        "model": MODEL,
        "words": len(report.split()),
        "tokens": usage.total_tokens if usage else None,
    }
