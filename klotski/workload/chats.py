"""Messages of a chat, as a checkpoint's chat template wants to see them.

A template is code of the checkpoint's authors. It gets what a request says, all fields of its messages included; what
it has no place for is refused, because a template drops it without a word.
"""

import re
from inspect import signature
from typing import Any

import msgspec

from klotski.errors import WorkloadError, first_line, panics_are_errors
from klotski.workload.lines import Line

__all__ = ["apply_template"]

# `for part in message.content`, in the spellings that templates use: content is then a list of parts.
READS_PARTS = re.compile(r"for\s+\w+\s+in\s+\w+(\.content|\[\s*['\"]content['\"]\s*\])")

FOR_TEMPLATES = ("tools", "documents", "add_generation_prompt")  # of what tokenizers are called with
READ_ELSEWHERE = ("role", "content", "tool_calls", "tool_call_id")  # an answer's place tells which call it is for


def apply_template(tokenizer: Any, line: Line) -> list[int]:
    """The tokens of a line's messages.

    Raises:
        WorkloadError: the template or the messages cannot be used; the message says why.
    """
    if not tokenizer.chat_template:
        raise WorkloadError("the tokenizer has no chat template for messages; give a prompt")
    try:
        template = tokenizer.get_chat_template(tools=line.tools)
    except Exception as error:  # several templates, and none that is the default
        raise WorkloadError(f"no chat template can be chosen: {first_line(error)}") from error
    messages = [prepare(index, message, template) for index, message in enumerate(line.messages or ())]
    if not messages:
        return []
    extra = {"tools": line.tools, "documents": line.documents, **(line.chat_template_kwargs or {})}
    extra = {name: value for name, value in extra.items() if value is not None}
    for name in extra:
        check_place(template, name)
        if name in ("messages", *signature(tokenizer.apply_chat_template).parameters) and name not in FOR_TEMPLATES:
            raise WorkloadError(f"chat_template_kwargs cannot have {name}, which is not passed on to the chat template")
    try:
        with panics_are_errors():
            encoded = tokenizer.apply_chat_template(
                messages, **{"add_generation_prompt": True} | extra, return_dict=True
            )
    except Exception as error:  # roles that do not alternate, say, or whatever the template's code runs into
        raise WorkloadError(f"the chat template refuses the messages: {first_line(error)}") from error
    return list(encoded["input_ids"])


def prepare(index: int, message: dict[str, Any], template: str | None) -> dict[str, Any]:
    """A message with its content as the template reads it, and the arguments of tool calls as objects."""
    where = f"messages[{index}]"
    if not isinstance(message.get("role"), str):
        raise WorkloadError(f"{where} has no role")
    content, calls = message.get("content"), message.get("tool_calls")
    if content is None and not calls:
        raise WorkloadError(f"{where} has no content")
    if content is not None:
        message = message | {"content": read_content(where, content, template)}
    for name in message:
        if name not in READ_ELSEWHERE and message[name]:
            check_place(template, name, where)
    if calls:
        check_place(template, "tool_calls", where)
        if not isinstance(calls, list):
            raise WorkloadError(f"{where}.tool_calls must be a list of calls")
        message = message | {"tool_calls": [read_call(f"{where}.tool_calls", call) for call in calls]}
    return message


def read_content(where: str, content: object, template: str | None) -> object:
    """Text, or its parts where the template goes through them."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise WorkloadError(f"{where}.content must be text or a list of parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise WorkloadError(f"{where}.content has a part of type {kind}; only text can be read")
        texts.append(part["text"])
    return content if template is not None and READS_PARTS.search(template) else "\n".join(texts)


def read_call(where: str, call: object) -> object:
    """A tool call whose arguments, JSON in a string as OpenAI writes them, are the object that templates expect."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise WorkloadError(f"{where} has a call without a function")
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        return call | {"function": function | {"arguments": msgspec.json.decode(arguments or "{}")}}
    except (msgspec.DecodeError, RecursionError) as error:
        raise WorkloadError(f"{where} has arguments that are not JSON: {error}") from error


def check_place(template: str | None, name: str, where: str = "") -> None:
    """Refuse what a template does not read. `template`: None where only the number of tokens is wanted."""
    if template is not None and not re.search(rf"\b{re.escape(name)}\b", template):
        raise WorkloadError(f"the chat template has no place for {name}" + f" of {where}" * bool(where))
