"""The `openai` Python package: chat, streams, tools, schemas, embeddings, log-probabilities, many requests at once, errors."""

import asyncio
import json
import tempfile

import openai

from server import ANSWER, DEMO, EMBEDDING, QUESTION, Server, run, with_tools

MESSAGES = [{"role": "user", "content": QUESTION}]
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "The weather of a city.", "parameters": {
        "type": "object", "additionalProperties": False, "required": ["city", "days"], "properties": {
            "city": {"type": "string", "maxLength": 12}, "days": {"type": "integer", "minimum": 1, "maximum": 9}}}}},
]


def client_of(server, **more):
    return openai.OpenAI(base_url=server.url + "/v1", **{"api_key": "none", "max_retries": 0, **more})


def chat(server):
    client = client_of(server)
    assert [model.id for model in client.models.list()] == [server.model]
    assert client.models.retrieve(server.model).id == server.model
    answer = client.chat.completions.create(model=server.model, messages=MESSAGES, max_completion_tokens=20)
    choice = answer.choices[0]
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (ANSWER, "assistant", "stop"), choice
    assert choice.message.content == run(DEMO, "-p", QUESTION, "--chat", "-n", 20)["text"]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    short = client.chat.completions.create(model=server.model, messages=MESSAGES, max_tokens=2)
    assert short.choices[0].finish_reason == "length"

    how = {"model": server.model, "messages": MESSAGES, "seed": 5, "temperature": 1.5, "n": 2, "max_tokens": 30}
    whole = client.chat.completions.create(**how)
    texts, reasons, usage = ["", ""], [None, None], None
    for chunk in client.chat.completions.create(**how, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for piece in chunk.choices:
            texts[piece.index] += piece.delta.content or ""
            reasons[piece.index] = piece.finish_reason or reasons[piece.index]
    assert texts == [choice.message.content for choice in whole.choices], texts
    assert reasons == [choice.finish_reason for choice in whole.choices], reasons
    assert usage == whole.usage

    # a stream that is closed early ends its request
    before = server.metric("requests_cancelled_total")
    stream = client.completions.create(
        model=server.model, prompt="One", max_tokens=500, n=50, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    for _ in range(2000):
        if server.metric("requests_cancelled_total") > before:
            break
    assert server.metric("requests_cancelled_total") == before + 1


def completions(server):
    client = client_of(server)
    answer = client.completions.create(model=server.model, prompt=["One two", "The"], max_tokens=4, temperature=0)
    for prompt, choice in zip(["One two", "The"], answer.choices):
        assert choice.text == run(DEMO, "-p", prompt, "-n", 4)["text"], choice
    streamed = ["", ""]
    for chunk in client.completions.create(
            model=server.model, prompt=["One two", "The"], max_tokens=4, temperature=0, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [choice.text for choice in answer.choices]


def log_probabilities(server):
    client = client_of(server)
    answer = client.chat.completions.create(model=server.model, messages=MESSAGES, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == ANSWER
    for entry in content:
        # without sampling fields the likeliest token is taken
        assert len(entry.top_logprobs) == 3
        assert (entry.token, entry.logprob) == (entry.top_logprobs[0].token, entry.top_logprobs[0].logprob)
    whole = client.completions.create(
        model=server.model, prompt=QUESTION, echo=True, logprobs=2, max_tokens=0).choices[0]
    assert whole.text == QUESTION and "".join(whole.logprobs.tokens) == QUESTION
    assert whole.logprobs.token_logprobs[0] is None and max(whole.logprobs.token_logprobs[1:]) <= 0
    streamed = []
    for chunk in client.chat.completions.create(
            model=server.model, messages=MESSAGES, logprobs=True, top_logprobs=3, stream=True):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert streamed == content


def schemas(server):
    from typing import Annotated, Literal

    from pydantic import BaseModel, ConfigDict, Field

    class Sizes(BaseModel):
        model_config = ConfigDict(extra="forbid")
        kind: Literal["small", "large"]
        count: Annotated[int, Field(ge=0, le=99)]
        tags: Annotated[list[bool], Field(max_length=3)]

    client = client_of(server)
    answer = client.chat.completions.parse(
        model=server.model, messages=MESSAGES, response_format=Sizes, seed=1, temperature=1, max_tokens=400)
    parsed = answer.choices[0].message.parsed
    assert isinstance(parsed, Sizes), answer
    with client.chat.completions.stream(
            model=server.model, messages=MESSAGES, response_format=Sizes, seed=1, temperature=1, max_tokens=400) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.parsed == parsed


def tools(server):
    client = client_of(server)
    how = {"model": server.model, "messages": [{"role": "user", "content": "How warm is it?"}], "tools": TOOLS,
           "seed": 3, "temperature": 1, "max_tokens": 200}
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        answer = client.chat.completions.create(**how, tool_choice=choice)
        (call,) = answer.choices[0].message.tool_calls
        assert answer.choices[0].finish_reason == "tool_calls" and call.function.name == "weather", answer
        arguments = json.loads(call.function.arguments)
        assert 1 <= arguments["days"] <= 9 and isinstance(arguments["city"], str)
        pieces, names = [], []
        for chunk in client.chat.completions.create(**how, tool_choice=choice, stream=True):
            for delta in chunk.choices[0].delta.tool_calls or []:
                assert delta.index == 0
                if delta.function.name:
                    names.append((delta.id, delta.function.name))
                pieces.append(delta.function.arguments or "")
        assert [name for _, name in names] == ["weather"] and names[0][0], names
        assert json.loads("".join(pieces)) == arguments and "".join(pieces) == call.function.arguments
        # the arguments arrive while the model writes them
        assert sum(map(bool, pieces)) > 3, pieces
        with client.chat.completions.stream(**how, tool_choice=choice) as stream:
            seen = [event for event in stream if event.type == "tool_calls.function.arguments.delta"]
        assert "".join(event.arguments_delta for event in seen) == call.function.arguments
    # the answer to a call goes back
    messages = how["messages"] + [answer.choices[0].message.model_dump(exclude_none=True),
                                  {"role": "tool", "tool_call_id": call.id, "content": "20 degrees"}]
    again = client.chat.completions.create(**{**how, "messages": messages}, tool_choice="none")
    assert again.choices[0].message.tool_calls is None


def responses(server):
    client = client_of(server)
    answer = client.responses.create(model=server.model, input=QUESTION, max_output_tokens=20)
    assert (answer.output_text, answer.status) == (ANSWER, "completed")
    text, last = "", None
    for event in client.responses.create(model=server.model, input=MESSAGES, max_output_tokens=20, stream=True):
        last = event
        if event.type == "response.output_text.delta":
            text += event.delta
    assert text == ANSWER and last.type == "response.completed" and last.response.output_text == ANSWER
    with client.responses.stream(model=server.model, input=QUESTION, instructions="Answer.") as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text
    short = client.responses.create(model=server.model, input=QUESTION, max_output_tokens=1)
    assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def embeddings():
    texts = ["hello", "a longer text about the weather"]
    alone = [entry["embedding"] for entry in run("embed", EMBEDDING, *texts)["embeddings"]]
    with Server(EMBEDDING) as server:
        client = client_of(server)
        # the package asks for base64 unless it is told otherwise
        for form in ({}, {"encoding_format": "float"}):
            answer = client.embeddings.create(model=server.model, input=texts, **form)
            for entry, want in zip(answer.data, alone, strict=True):
                difference = max(abs(a - b) for a, b in zip(entry.embedding, want, strict=True))
                assert difference < 1e-8, difference  # one prints f32 in short, the other one f64
        try:
            client.chat.completions.create(model=server.model, messages=MESSAGES)
        except openai.BadRequestError as error:
            assert error.code == "embedding_model"
        else:
            raise AssertionError("an embedding model chats")


def at_once(server):
    """16 requests at once, with the package's asynchronous client: the answers of each alone."""
    def body(number):
        messages = [{"role": "user", "content": f"What is {number} plus 25?"}]
        return {"model": server.model, "messages": messages, "seed": number, "temperature": 2, "max_tokens": 30, "logprobs": True}

    def said(answer):
        return answer.choices[0].message.content, answer.choices[0].logprobs, answer.usage

    client = client_of(server)
    alone = [said(client.chat.completions.create(**body(number))) for number in range(16)]

    async def together():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as many:
            return await asyncio.gather(*[many.chat.completions.create(**body(number)) for number in range(16)])

    assert [said(answer) for answer in asyncio.run(together())] == alone
    assert len({text for text, *_ in alone}) > 4, "the texts are alike"


def errors(server):
    def refused(kind, status, code, param=None, client=None, **body):
        body = {"model": server.model, "messages": MESSAGES, **body}
        try:
            (client or client_of(server)).chat.completions.create(**body)
        except openai.APIStatusError as error:
            assert type(error) is kind, f"{type(error)}: {error}"
            assert (error.status_code, error.code, error.param) == (status, code, param), error
            return error
        raise AssertionError(f"{kind.__name__} expected")

    refused(openai.BadRequestError, 400, "invalid_value", "temperature", temperature=-1)
    refused(openai.BadRequestError, 400, "unknown_parameter", "temprature", extra_body={"temprature": 1})
    refused(openai.BadRequestError, 400, "context_length_exceeded", "messages",
            messages=[{"role": "user", "content": "word " * 2000}])
    refused(openai.NotFoundError, 404, "model_not_found", "model", model="other")
    try:
        client_of(server).get("/other", cast_to=object)
        raise AssertionError("a path that does not exist answers")
    except openai.NotFoundError as error:
        assert error.code == "unknown_route"
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/keys"
        with open(path, "w") as file:
            file.write("right\n")
        with Server(DEMO, "--api-key-file", path, "--parallel", "1", "--queue", "1", "--max-body", "100KB") as guarded:
            right = client_of(guarded, api_key="right")
            of_guarded = {"model": guarded.model}
            refused(openai.AuthenticationError, 401, "invalid_api_key", client=client_of(guarded), **of_guarded)
            refused(openai.APIStatusError, 413, "body_too_large", client=right,
                    messages=[{"role": "user", "content": "x" * 200_000}], **of_guarded)
            # one runs, one waits
            slow = {"prompt": "One", "max_tokens": 500, "n": 100, "stream": True, "extra_body": {"ignore_eos": True}}
            streams = [right.completions.create(**of_guarded, **slow) for _ in range(2)]
            error = refused(openai.RateLimitError, 429, "queue_full", client=right, **of_guarded)
            assert error.response.headers["retry-after"] == "1"
            for stream in streams:
                stream.close()
            # with the package's own retries a request gets through
            patient = client_of(guarded, api_key="right", max_retries=5)
            assert patient.chat.completions.create(messages=MESSAGES, **of_guarded).choices[0].message.content == ANSWER


def check():
    with Server(DEMO, "--parallel", "4") as server:
        for part in (chat, completions, log_probabilities, schemas, responses, at_once, errors):
            part(server)
            yield part.__name__
    with tempfile.TemporaryDirectory() as directory, Server(with_tools(directory)) as server:
        tools(server)
        yield "tools"
    embeddings()
    yield "embeddings"
