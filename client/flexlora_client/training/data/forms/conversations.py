"""Conversations: `messages` as OpenAI and transformers write them, `conversations` as ShareGPT does."""

import json
from collections.abc import Callable, Sequence

from flexlora_client.training.data.examples import Chat, Turn
from flexlora_client.training.data.forms.values import Fields, encodable, list_of
from flexlora_client.training.data.rows import RowError

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
FURTHER = (
    "reasoning_content",
    "tool_calls",
    "tool_call_id",
    "name",
)  # what chat templates show of a message beside its content


def messages_chat(fields: Fields) -> Chat:
    """The conversation in `messages`, with the `tools` on offer. Raises: RowError."""
    return _chat(fields, "messages", _turn)


def sharegpt_chat(fields: Fields) -> Chat:
    """The conversation in `conversations`, behind the text of `system` if there is one. Raises: RowError."""
    chat = _chat(fields, "conversations", _sharegpt_turn)
    system = fields.get("system")
    if isinstance(system, str) and system.strip() and chat.turns[0].role != "system":
        return Chat((Turn("system", encodable(system, "system")), *chat.turns), chat.tools)
    return chat


def _chat(fields: Fields, name: str, turn_of: Callable[[int, object], Turn]) -> Chat:
    messages = list_of(fields, name) if fields[name] else []
    if not messages:
        raise RowError(f"{name} must be a list of {{role, content}} objects with at least one in it.")
    turns = tuple(turn_of(number, message) for number, message in enumerate(messages, 1))
    if all(turn.role != "assistant" for turn in turns):
        raise RowError(f"{name} hold no turn of the role assistant, so there is nothing to learn; add one.")
    if turns[0].role == "assistant":
        raise RowError(f"{name} begin with the assistant's turn; begin with a user's or system's, which it answers.")
    return Chat(turns, _tools(fields))


def _turn(number: int, message: object) -> Turn:
    role = message.get("role") if isinstance(message, dict) else None
    if not (isinstance(message, dict) and isinstance(role, str) and role):
        raise RowError(f"message {number} must have a role and a content, both texts.")
    further = {name: message[name] for name in FURTHER if message.get(name) is not None}
    content = _content(number, message.get("content"), calls="tool_calls" in further)
    if role == "assistant" and not content.strip() and not further.get("tool_calls"):
        raise RowError(f"message {number} is the assistant's and is empty; fill it in or delete the row.")
    return Turn(role, content, _json(further) if further else "")


def _content(number: int, content: object, *, calls: bool) -> str:
    """The text of a message; of a list of parts, their texts joined; of a message that only calls tools, none."""
    if content is None and calls:
        return ""
    if isinstance(content, str):
        return encodable(content, f"message {number}")
    if not isinstance(content, list):
        raise RowError(f"message {number} must have a role and a content, both texts.")
    for part in content:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise RowError(f"message {number} holds a part of the type {kind}; only text can be learned.")
    return encodable("".join(part["text"] for part in content), f"message {number}")


def _sharegpt_turn(number: int, message: object) -> Turn:
    if not (isinstance(message, dict) and "from" in message):
        return _turn(number, message)  # some write role and content in this column too
    role = SHAREGPT_ROLES.get(str(message["from"]))
    if role is None:
        known = ", ".join(SHAREGPT_ROLES)
        raise RowError(f"message {number} is from {str(message['from'])[:80]!r}; it must be one of {known}.")
    return _turn(number, {"role": role, "content": message.get("value")})


def _tools(fields: Fields) -> str:
    tools: Sequence[object] = list_of(fields, "tools") if fields.get("tools") else []
    return _json(tools) if tools else ""


def _json(value: object) -> str:
    """Compact, with the keys in the file's order: templates show them so."""
    try:
        return encodable(json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False), "a message")
    except (TypeError, ValueError) as error:
        raise RowError(f"tools or further fields of a message cannot be written as JSON ({error}).") from None
