"""Agents that ask a model in each way that a framework offers; each returns its answers by name, or the error."""

COLLECT = '''
import asyncio, inspect

class Person(pydantic.BaseModel):
    """A person."""
    name: str
    age: int

async def handle(payload):
    answers = {}
    for name, ask in ((name, value) for name, value in globals().items() if name.startswith("ask_")):
        try:
            answer = ask(payload["model"])
            answer = await answer if inspect.isawaitable(answer) else answer
            answers[name[4:]] = answer.model_dump() if isinstance(answer, pydantic.BaseModel) else answer
        except Exception as error:
            answers[name[4:]] = f"{type(error).__name__}: {error}"
    return answers
'''
LANGCHAIN = '''
import pydantic
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b

def ask_whole(model): return ChatOpenAI(model=model).invoke("hi").text
def ask_streamed(model): return "".join(chunk.text for chunk in ChatOpenAI(model=model).stream("hi"))
def ask_responses(model): return ChatOpenAI(model=model, use_responses_api=True).invoke("hi").text
def ask_batch(model): return ChatOpenAI(model=model).batch(["hi", "ho"])[1].text
def ask_effort(model): return ChatOpenAI(model=model, reasoning_effort="low", verbosity="low").invoke("hi").text
def ask_structured(model): return ChatOpenAI(model=model).with_structured_output(Person).invoke("Ada is 36")
def ask_function(model):
    return ChatOpenAI(model=model).with_structured_output(Person, method="function_calling").invoke("Ada is 36")
def ask_strict(model):
    tools = ChatOpenAI(model=model).bind_tools([add], strict=True, parallel_tool_calls=False)
    return tools.invoke("2 + 40").tool_calls[0]["args"]
def ask_vector(model): return OpenAIEmbeddings(model="vectors", check_embedding_ctx_length=False).embed_query("hi")
'''
AGENTS_SDK = '''
import os
import pydantic
from agents.mcp import MCPServerStdio
from agents import Agent, AsyncOpenAI, ModelSettings, OpenAIChatCompletionsModel, Runner, SQLiteSession, function_tool

@function_tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b

async def ask_whole(model): return (await Runner.run(Agent(name="a", model=model), "hi")).final_output
async def ask_streamed(model):
    result = Runner.run_streamed(Agent(name="a", model=model, tools=[add]), "2 + 40")
    async for event in result.stream_events(): pass
    return result.final_output
async def ask_structured(model):
    return (await Runner.run(Agent(name="a", model=model, output_type=Person), "Ada is 36")).final_output
async def ask_session(model):
    session = SQLiteSession("a", os.path.expanduser("~/session.db"))
    for text in ("hi", "ho"): result = await Runner.run(Agent(name="a", model=model), text, session=session)
    return result.final_output
async def ask_chat(model):
    chat = OpenAIChatCompletionsModel(model, AsyncOpenAI())
    return (await Runner.run(Agent(name="a", model=chat, tools=[add]), "2 + 40")).final_output
async def ask_mcp(model):
    async with MCPServerStdio(params={"command": "python", "args": ["server.py"]}, cache_tools_list=True) as server:
        return (await Runner.run(Agent(name="a", model=model, mcp_servers=[server]), "2 + 40")).final_output
async def ask_labelled(model):
    settings = ModelSettings(tool_choice="required", parallel_tool_calls=True, store=False, metadata={"a": "b"})
    return (await Runner.run(Agent(name="a", model=model, tools=[add], model_settings=settings), "2 + 40")).final_output
async def ask_chained(model):
    first = await Runner.run(Agent(name="a", model=model), "hi")
    chained = await Runner.run(Agent(name="a", model=model), "ho", previous_response_id=first.last_response_id)
    return chained.final_output
'''
PYDANTIC_AI = '''
import pydantic
from pydantic_ai import Agent, ModelSettings, NativeOutput, PromptedOutput

def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b

async def ask_whole(model): return (await Agent(f"openai:{model}").run("hi")).output
async def ask_chat(model): return (await Agent(f"openai-chat:{model}", tools=[add]).run("2 + 40")).output
async def ask_streamed(model):
    async with Agent(f"openai:{model}", tools=[add]).run_stream("2 + 40") as result: return await result.get_output()
async def ask_structured(model): return (await Agent(f"openai:{model}", output_type=Person).run("Ada is 36")).output
async def ask_native(model):
    return (await Agent(f"openai:{model}", output_type=NativeOutput(Person)).run("Ada is 36")).output
async def ask_prompted(model):
    return (await Agent(f"openai-chat:{model}", output_type=PromptedOutput(Person)).run("Ada is 36")).output
async def ask_bounded(model):
    settings = ModelSettings(max_tokens=50, parallel_tool_calls=False, timeout=20)
    return (await Agent(f"openai:{model}", model_settings=settings).run("hi")).output
'''
# A server of tools, which an agent starts as its child.
MCP_SERVER = '''
from mcp.server import MCPServer

server = MCPServer("numbers")

@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b

server.run()
'''
# By the folder of the example whose requirements they need.
FRAMEWORK_AGENTS = {
    "langgraph": LANGCHAIN + COLLECT,
    "openai_agents": AGENTS_SDK + COLLECT,
    "pydantic_ai": PYDANTIC_AI + COLLECT,
}
