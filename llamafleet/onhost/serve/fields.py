"""What a request may ask for: each field of it with what is taken, all else refused by its name.

llama_cpp.server passes most values on to llama.cpp as they are, and what llama.cpp can't bear ends
the process: a grammar that it can't parse, a number that is none, a token that there is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from llamafleet.onhost.serve import schema
from llamafleet.onhost.serve.errors import Refusal, no_model, wrong

Route = Literal["completions", "chat"]
Body = dict[str, Any]
Check = Callable[[str, Any], None]
"""Of a field's name and value, which is not null. Raises Refusal."""

MOST_STOPS, LONGEST_STOP = 16, 256
"""OpenAI takes 4. Each is searched for in the whole answer at every token."""
MOST_BIAS = 300
"""Tokens with a bias, as OpenAI takes: each is set by itself at every token."""
MOST_TOOLS = 128
MOST_MESSAGES = 2048
"""llama.cpp splits a text at special tokens in time that grows with their number's square:
measured, 0.4 s for 2000 messages, 45 s for 40 000."""
ROLES = ("system", "user", "assistant", "tool", "function")
LARGEST = 2**31 - 1
"""Of a number that llama.cpp has as int32_t."""


def _shown(value: object) -> str:
    return json.dumps(value)[:80]


def _type(kind: type, words: str) -> Check:
    def check(name: str, value: Any) -> None:
        if type(value) is not kind:
            raise wrong(name, _shown(value), words)

    return check


def _number(least: float, most: float) -> Check:
    def check(name: str, value: Any) -> None:
        if type(value) not in (int, float) or not least <= value <= most:
            raise wrong(name, _shown(value), f"a number from {least:g} to {most:g}")

    return check


def _whole(least: int, most: int = LARGEST) -> Check:
    def check(name: str, value: Any) -> None:
        if type(value) is not int or not least <= value <= most:
            raise wrong(name, _shown(value), f"a whole number from {least} to {most}")

    return check


def _only(value: Any, why: str) -> Check:
    def check(name: str, found: Any) -> None:
        if found != value or type(found) is not type(value):
            raise wrong(name, _shown(found), f"{json.dumps(value)}: {why}")

    return check


def _not_served(why: str) -> Check:
    def check(name: str, value: Any) -> None:
        raise wrong(name, _shown(value), f"nothing: {why}")

    return check


def _stop(name: str, value: Any) -> None:
    words = [value] if isinstance(value, str) else value
    expected = f"a text, or at most {MOST_STOPS} of 1 to {LONGEST_STOP} characters"
    if not isinstance(words, list) or len(words) > MOST_STOPS:
        raise wrong(name, _shown(value), expected)
    for word in words:
        if not isinstance(word, str) or not 0 < len(word) <= LONGEST_STOP:
            raise wrong(name, _shown(word), expected)


def _bias(name: str, value: Any) -> None:
    expected = f"at most {MOST_BIAS} tokens by their numbers, each with -100 to 100"
    if not isinstance(value, dict) or len(value) > MOST_BIAS:
        raise wrong(name, _shown(value), expected)
    for token, bias in value.items():
        if not re.fullmatch("[0-9]{1,9}", token) or type(bias) not in (int, float):
            raise wrong(name, _shown({token: bias}), expected)
        if not -100 <= bias <= 100:
            raise wrong(name, _shown({token: bias}), expected)


def _prompt(name: str, value: Any) -> None:
    one = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(one, str):
        raise wrong(name, _shown(value), "one text")


def _messages(name: str, value: Any) -> None:
    if not isinstance(value, list) or not 0 < len(value) <= MOST_MESSAGES:
        raise wrong(name, _shown(value), f"a list of 1 to {MOST_MESSAGES} messages")
    for number, message in enumerate(value):
        if not isinstance(message, dict):
            raise wrong(f"{name}[{number}]", _shown(message), "an object with role and content")
        role = message.get("role")
        if role not in ROLES:
            raise wrong(f"{name}[{number}].role", _shown(role), f"one of {', '.join(ROLES)}")
        _content(f"{name}[{number}].content", message.get("content"))


def _content(name: str, value: Any) -> None:
    if value is None or isinstance(value, str):
        return
    if not isinstance(value, list):
        raise wrong(name, _shown(value), "a text or a list of parts")
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else part
        # An image is a URL that the server would fetch: there is no code for it here.
        if not isinstance(part, dict) or kind != "text" or not isinstance(part.get("text"), str):
            raise wrong(name, _shown(kind), 'parts of type "text": nothing else is served')


def _tools(name: str, value: Any) -> None:
    if not isinstance(value, list) or len(value) > MOST_TOOLS:
        raise wrong(name, _shown(value), f"a list of at most {MOST_TOOLS}")
    for number, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise wrong(f"{name}[{number}]", _shown(tool), "an object with a function of a name")
        schema.check(f"{name}[{number}].function.parameters", function.get("parameters", {}))


def _format(name: str, value: Any) -> None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in ("text", "json_object", "json_schema"):
        raise wrong(name, _shown(value), 'a type "text", "json_object" or "json_schema"')
    wrapped = value.get("json_schema")
    if kind == "json_schema" and not isinstance(wrapped, dict):
        raise wrong(f"{name}.json_schema", _shown(wrapped), "an object with a schema")
    wanted = wrapped.get("schema") if isinstance(wrapped, dict) else value.get("schema")
    if wanted is not None:
        schema.check(f"{name}.schema", wanted)


def _options(name: str, value: Any) -> None:
    usage = value.get("include_usage", False) if isinstance(value, dict) else value
    if not isinstance(value, dict) or type(usage) is not bool:
        raise wrong(name, _shown(value), 'an object with "include_usage"')


def _ignored(name: str, value: Any) -> None:
    """It changes no answer of this server."""


_TEXT = _type(str, "a text")
_FLAG = _type(bool, "true or false")
_NO_LOGITS = "the logits of all tokens are not kept, which would take memory from the context"

COMMON: Mapping[str, Check] = {
    "model": _TEXT,
    "max_tokens": _whole(1),
    "min_tokens": _whole(0),
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "min_p": _number(0, 1),
    "top_k": _whole(0),
    "stop": _stop,
    "stream": _FLAG,
    "stream_options": _options,
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "repeat_penalty": _number(0.01, 10),
    "mirostat_mode": _whole(0, 2),
    "mirostat_tau": _number(0, 10),
    "mirostat_eta": _number(0.001, 1),
    "seed": _whole(-(2**63), 2**63 - 1),
    "logit_bias": _bias,
    "n": _only(1, "one answer a request"),
    "user": _TEXT,
    "grammar": _not_served("llama.cpp ends the process at a grammar that it can't go on with"),
    "store": _ignored,
    "metadata": _ignored,
    "service_tier": _ignored,
    "safety_identifier": _ignored,
    "prompt_cache_key": _ignored,
}
"""Of both routes: OpenAI's fields, and those of llama_cpp.server beside them."""

OF: Mapping[Route, Mapping[str, Check]] = {
    "completions": {
        **COMMON,
        "prompt": _prompt,
        "echo": _FLAG,
        "best_of": _only(1, "one answer a request"),
        "logprobs": _not_served(_NO_LOGITS),
        "suffix": _not_served("no model's own tokens for it are known to this server"),
    },
    "chat": {
        **COMMON,
        "messages": _messages,
        "max_completion_tokens": _whole(1),
        "tools": _tools,
        "tool_choice": _ignored,
        "response_format": _format,
        "logprobs": _only(False, _NO_LOGITS),
        "top_logprobs": _only(0, _NO_LOGITS),
        "parallel_tool_calls": _ignored,
        "reasoning_effort": _ignored,
        "verbosity": _ignored,
        "modalities": _only(["text"], "it answers in text"),
    },
}
NEEDED: Mapping[Route, str] = {"completions": "prompt", "chat": "messages"}
NOT_PASSED = frozenset(
    name for name, check in {**OF["chat"], **OF["completions"]}.items() if check is _ignored
) - {"tool_choice"} | {"stream_options", "modalities", "logprobs", "top_logprobs", "n", "best_of"}
"""Of no meaning to llama_cpp.server, or of one value alone."""


def checked(route: Route, data: Body, alias: str) -> Body:
    """What llama_cpp.server is asked for in place of `data`. Raises Refusal."""
    known = OF[route]
    given = {name: value for name, value in data.items() if value is not None}
    for name, value in given.items():
        if name not in known:
            text = f"Unrecognized request argument supplied: {name[:80]}"
            raise Refusal(400, text, param=name[:80])
        known[name](name, value)
    if NEEDED[route] not in given:
        raise wrong(NEEDED[route], "nothing", "it in every request")
    if given.get("model", alias) != alias:
        raise no_model(given["model"], alias)
    if "max_completion_tokens" in given:
        given["max_tokens"] = given.pop("max_completion_tokens")
    if "seed" in given:
        given["seed"] %= 2**32
    if "min_tokens" in given and "logit_bias" in given:
        # llama_cpp loses both where both are asked for.
        raise wrong("min_tokens", "it beside logit_bias", "one of the two")
    if "response_format" in given:
        given["response_format"] = _own_format(given["response_format"])
    passed = {name: value for name, value in given.items() if name not in NOT_PASSED}
    return passed | {"model": alias}


def _own_format(value: Body) -> Body:
    """As llama_cpp.server words a schema."""
    if value["type"] == "text":
        return {"type": "text"}
    wrapped = value.get("json_schema") or {}
    wanted = wrapped.get("schema", value.get("schema"))
    return {"type": "json_object"} | ({"schema": wanted} if wanted is not None else {})


def texts(body: Body) -> Iterator[str]:
    """All that the model would read of a checked body, but for what its template adds."""
    prompt = body.get("prompt", "")
    yield prompt if isinstance(prompt, str) else prompt[0]
    for message in body.get("messages", ()):
        content = message.get("content") or ""
        if isinstance(content, str):
            yield content
        else:
            yield from (part["text"] for part in content)


def wants_usage(data: Body) -> bool:
    """Of a stream: what it cost is to be told in its last piece."""
    options = data.get("stream_options")
    return bool(data.get("stream") and options and options.get("include_usage"))
