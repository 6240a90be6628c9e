"""A graph of two nodes: a model that may call a tool, and the tool. Each step of it is shown as it happens."""

import os
from collections.abc import Iterator
from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

KILOMETRES = {("berlin", "prague"): 350, ("paris", "lyon"): 465, ("rome", "naples"): 225}


@tool
def find_distance(start: str, end: str) -> str:
    """Find the distance between two cities by road."""
    pair = (start.lower(), end.lower())
    distance = KILOMETRES.get(pair) or KILOMETRES.get(pair[::-1])
    return f"{distance} km" if distance else "unknown"


model = ChatOpenAI(model=os.environ.get("MODEL", "gpt-5-mini"))
model_with_tools = model.bind_tools([find_distance])


def ask_model(state: MessagesState) -> dict[str, Any]:
    rule = SystemMessage("You plan trips. Answer in one sentence.")
    return {"messages": [model_with_tools.invoke([rule, *state["messages"]])]}


builder = StateGraph(MessagesState)
builder.add_node("model", ask_model)
builder.add_node("tools", ToolNode([find_distance]))
builder.add_edge(START, "model")
builder.add_conditional_edges("model", tools_condition)
builder.add_edge("tools", "model")
graph = builder.compile()


def handle(payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    question = payload.get("question") or "How far is it from Berlin to Prague?"
    answer = ""
    for update in graph.stream({"messages": [HumanMessage(question)]}, stream_mode="updates"):
        for node, change in update.items():
            message = change["messages"][-1]
            answer = message.text
            calls = [{"tool": call["name"], "arguments": call["args"]} for call in getattr(message, "tool_calls", [])]
            yield {"node": node, "text": answer, "calls": calls}
    return {"question": question, "answer": answer}
