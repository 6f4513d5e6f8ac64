"""A run's prompt format: which turns an example is, and by which layout they become tokens."""

from flexlora_client.errors import ModelError
from flexlora_client.training.data.examples import Chat, Choice, Instructed, Prompted, Turn
from flexlora_client.training.encoding.encoded import NothingToLearn
from flexlora_client.training.encoding.layouts import Layout, PiecewiseLayout, TemplateLayout
from flexlora_client.training.encoding.templates import ALPACA, CHATML
from flexlora_client.training.encoding.tokenizing import Texts
from flexlora_shared.messages.runs import PromptFormat

Asked = Prompted | Instructed | Chat | Choice  # what a model answers
Turns = tuple[Turn, ...]


def turns_of(example: Asked, prompt_format: PromptFormat) -> Turns:
    """The example as a conversation that ends with the assistant's turn; what follows its last one teaches nothing."""
    if isinstance(example, Chat):
        last = max(number for number, turn in enumerate(example.turns) if turn.role == "assistant")
        return example.turns[: last + 1]
    if isinstance(example, Prompted):
        return Turn("user", example.prompt), Turn("assistant", example.completion)
    if isinstance(example, Choice):
        return Turn("user", example.prompt), Turn("assistant", example.choices[example.answer])
    return _instruction(example, prompt_format)


def layout_of(example: Asked, texts: Texts, prompt_format: PromptFormat) -> Layout:
    """How its turns become tokens.

    Raises:
        ModelError: the run asks for the tokenizer's chat template, and there is none.
        NothingToLearn: the format has no form for the example.
    """
    own = texts.tokenizer.chat_template is not None
    if prompt_format == "chat-template" and not own:
        raise ModelError(
            "the run lays examples out by the tokenizer's chat template, and this tokenizer has none; use the model's own "
            "tokenizer, or ask the operator for another prompt_format."
        )
    chat = isinstance(example, Chat)
    if prompt_format == "chat-template" or (prompt_format == "as-is" and chat and own):
        return TemplateLayout(texts, tools=example.tools if isinstance(example, Chat) else "")
    if isinstance(example, Chat):
        _check_form(example, prompt_format)
    if prompt_format == "as-is":
        return PiecewiseLayout(texts, roles=chat)
    return TemplateLayout(texts, ALPACA if prompt_format == "alpaca" else CHATML)


def _instruction(example: Instructed, prompt_format: PromptFormat) -> Turns:
    instruction, context, output = example.instruction, example.context, Turn("assistant", example.output)
    given = bool(context.strip())
    if prompt_format == "alpaca":
        return (Turn("user", instruction), *([Turn("input", context)] if given else []), output)
    if prompt_format == "as-is":
        return Turn("user", f"{instruction}\n{context}\n" if given else f"{instruction}\n"), output
    return Turn("user", f"{instruction}\n{context}" if given else instruction), output


def _check_form(chat: Chat, prompt_format: PromptFormat) -> None:
    if prompt_format == "alpaca":
        raise NothingToLearn(
            "the run's prompt format, alpaca, has no form for a conversation; give instruction, input and output, or "
            "prompt and completion."
        )
    if chat.tools or any('"tool_calls"' in turn.further for turn in chat.turns):
        raise NothingToLearn(
            "a conversation has tools, for which the run's prompt format has no place; leave them out, or use a run whose "
            "prompt_format is chat-template."
        )
