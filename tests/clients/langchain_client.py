"""LangChain's `ChatOpenAI`: answers, streams, tools, structured output."""

import tempfile
from typing import Annotated

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict, Field

from server import ANSWER, DEMO, QUESTION, Server, with_tools


class Weather(BaseModel):
    """The weather."""

    model_config = ConfigDict(extra="forbid")
    days: Annotated[int, Field(ge=1, le=9)]


@tool(args_schema=Weather)
def weather(days: int) -> str:
    """The weather of the next days."""
    return f"{days} days of rain"


def model_of(server, **more):
    return ChatOpenAI(base_url=server.url + "/v1", api_key="none", model=server.model, max_retries=0, **more)


def check():
    with Server(DEMO) as server:
        model = model_of(server, temperature=0)
        assert model.invoke(QUESTION).content == ANSWER
        assert "".join(str(chunk.content) for chunk in model.stream(QUESTION)) == ANSWER
        answers = model.batch([QUESTION] * 8)
        assert [answer.content for answer in answers] == [ANSWER] * 8
        yield "invoke, stream, batch"
        found = model_of(server, seed=1, temperature=1, max_tokens=200).with_structured_output(Weather).invoke(QUESTION)
        assert isinstance(found, Weather), found
        yield "structured output"
    with tempfile.TemporaryDirectory() as directory, Server(with_tools(directory)) as server:
        model = model_of(server, seed=1, temperature=1, max_tokens=200).bind_tools([weather], tool_choice="weather", strict=True)
        answer = model.invoke("How is the weather?")
        (call,) = answer.tool_calls
        assert call["name"] == "weather" and isinstance(call["args"]["days"], int), call
        whole = None
        for chunk in model.stream("How is the weather?"):
            whole = chunk if whole is None else whole + chunk
        assert whole.tool_calls[0]["args"] == call["args"], whole
        yield "tools"
