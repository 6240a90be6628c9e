"""The smallest agent: a function that takes the payload and returns something JSON can say."""


def handle(payload: dict) -> dict:
    name = payload.get("name") or payload.get("input") or "world"
    return {"result": f"Hello, {name}!"}
