#!/usr/bin/env python3
"""Write what transformers makes of conversations with tool calls and thinking.

    scripts/chat_template_tools.py tests/fixtures/chat_templates/tools.json

Two templates stand for the published kinds: one writes calls as JSON, the other as parameters in tags, and looks at neighboring messages. Both
have a variable for thinking.
Needs: pip install transformers==5.24.0 jinja2==3.1.6 (no torch). Exit status: 0 written, 1 could not.
"""
import json
import sys
from pathlib import Path

JSON_CALLS = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "Tools:" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set state = namespace(searching=true, asked=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set at = (messages|length - 1) - loop.index0 %}
    {%- if state.searching and message.role == "user" and not message.content.startswith('<tool_response>') %}
        {%- set state.searching = false %}
        {%- set state.asked = at %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in message.content %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
            {%- set thought = message.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > state.asked and (loop.last or thought) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
            {{- content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if (loop.first and content) or not loop.first %}{{- '\\n' }}{%- endif %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {%- if call.arguments is string %}{{- call.arguments }}{%- else %}{{- call.arguments | tojson }}{%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

TAGGED_CALLS = """\
{%- set pictures = namespace(value=0) %}
{%- macro text_of(content, counts, in_system=false) %}
    {%- if content is string %}
        {{- content }}
    {%- elif content is iterable and content is not mapping %}
        {%- for part in content %}
            {%- if 'image' in part or part.type == 'image' %}
                {%- if in_system %}{{- raise_exception('no pictures here') }}{%- endif %}
                {%- if counts %}{%- set pictures.value = pictures.value + 1 %}{%- endif %}
                {{- 'Picture ' ~ pictures.value ~ ': <|image_pad|>' }}
            {%- elif 'text' in part %}
                {{- part.text }}
            {%- else %}
                {{- raise_exception('a part of no kind') }}
            {%- endif %}
        {%- endfor %}
    {%- elif content is none or content is undefined %}
        {{- '' }}
    {%- else %}
        {{- raise_exception('content of no kind') }}
    {%- endif %}
{%- endmacro %}
{%- if tools and tools is iterable and tools is not mapping %}
    {{- '<|im_start|>system\\n<tools>' }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- '\\n</tools>' }}
    {%- if messages[0].role == 'system' %}
        {%- set content = text_of(messages[0].content, false, true)|trim %}
        {%- if content %}{{- '\\n\\n' + content }}{%- endif %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + text_of(messages[0].content, false, true)|trim + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = text_of(message.content, true)|trim %}
    {%- if message.role == "system" %}
        {%- if not loop.first %}{{- raise_exception('a system message behind others') }}{%- endif %}
    {%- elif message.role == "user" %}
        {{- '<|im_start|>user\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thought = message.reasoning_content if message.reasoning_content is string else '' %}
        {{- '<|im_start|>assistant\\n<think>\\n' + thought|trim + '\\n</think>\\n\\n' + content }}
        {%- if message.tool_calls and message.tool_calls is iterable and message.tool_calls is not mapping %}
            {%- for call in message.tool_calls %}
                {%- if call.function is defined %}{%- set call = call.function %}{%- endif %}
                {{- ('\\n\\n' if content else '') if loop.first else '\\n' }}
                {{- '<tool_call>\\n<function=' + call.name + '>\\n' }}
                {%- for name, value in (call.arguments or {})|items %}
                    {%- set value = value | tojson | safe if value is mapping or (value is sequence and value is not string) else value | string %}
                    {{- '<parameter=' + name + '>\\n' }}
                    {{- value }}
                    {{- '\\n</parameter>\\n' }}
                {%- endfor %}
                {{- '</function>\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.previtem and loop.previtem.role != "tool" %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != "tool" %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- else %}
        {{- raise_exception('a role of no kind') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if thinking is defined and not thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- else %}{{- '<think>\\n' }}{%- endif %}
{%- endif %}"""

TOOL = {"type": "function", "function": {
    "name": "weather", "description": "The weather <now> & later, \"exactly\"",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}, "days": {"type": "integer"}},
                   "required": ["place"]}}}


def call(arguments, wrapped=True):
    function = {"name": "weather", "arguments": arguments}
    return {"type": "function", "function": function} if wrapped else function


user = {"role": "user", "content": "Wie ist das Wetter in Köln? 🌧"}
ARGUMENTS = {"place": "Köln", "days": 3, "hours": [1, 2.5], "exact": True, "note": None, "more": {"é": "<&>'\""}}
CONVERSATIONS = {
    "plain": [user],
    "system": [{"role": "system", "content": " Be brief.\n"}, user],
    "thought in the text": [user, {"role": "assistant", "content": "<think>\nrain?\n</think>\n\nRain."}, user],
    "thought beside it": [user, {"role": "assistant", "content": "Rain.", "reasoning_content": "\nrain?\n"}],
    "one call": [{"role": "system", "content": "Use tools."}, user,
                 {"role": "assistant", "content": "", "tool_calls": [call(ARGUMENTS)]},
                 {"role": "tool", "content": "rain"}],
    "calls and answers": [user, {"role": "assistant", "content": "I look.", "reasoning_content": "two places",
                                 "tool_calls": [call({"place": "Köln"}), call({"place": "Bonn"}, False)]},
                          {"role": "tool", "content": "rain"}, {"role": "tool", "content": "{\"sun\": true}"},
                          {"role": "assistant", "content": "Rain and sun."}, user],
    "arguments in a text": [user, {"role": "assistant", "content": "", "tool_calls": [call('{"place": "Köln"}')]}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "image"},
                                           {"type": "text", "text": "?"}]}],
    "nobody": [{"role": "nobody", "content": "?"}],
}
VARIABLES = [{}, {"enable_thinking": False, "thinking": False}, {"enable_thinking": True, "thinking": True}]


def main():
    from transformers.utils.chat_template_utils import _compile_jinja_template
    cases = []
    for template in (JSON_CALLS, TAGGED_CALLS):
        compiled = _compile_jinja_template(template)
        for name, messages in CONVERSATIONS.items():
            for tools in (None, [TOOL]):
                for variables in VARIABLES:
                    context = {"messages": messages, "tools": tools, "documents": None,
                               "add_generation_prompt": messages[-1]["role"] != "assistant", **variables}
                    try:
                        expected = compiled.render(**context)
                    except Exception:  # noqa: BLE001 - whatever a template raises is a refusal
                        expected = None
                    cases.append({"template": "json" if template == JSON_CALLS else "tagged", "conversation": name,
                                  "tools": tools is not None, "variables": variables, "expected": expected})
    fixture = {"templates": {"json": JSON_CALLS, "tagged": TAGGED_CALLS}, "conversations": CONVERSATIONS,
               "tools": [TOOL], "cases": cases}
    text = json.dumps(fixture, ensure_ascii=False, indent=1) + "\n"
    Path(sys.argv[1]).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
