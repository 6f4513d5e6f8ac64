"""Shows generated text before and after fine-tuning, with plain transformers and peft."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from flexlora_client.training.data.examples import Example, Prompted

SHOWN_PROMPTS = 8
MAX_NEW_TOKENS = 16


def say(model: Any, tokenizer: Any, prompt: str) -> str:
    """The greedy continuation of a prompt."""
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        generated = model.generate(
            **inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.eos_token_id
        )
    text: str = tokenizer.decode(generated[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return " ".join(text.split())


def show_texts(console: Console, base: str, adapter: Path, mix: Sequence[Example]) -> None:
    """A table of prompts, the base model's words, and the words with the exported adapter loaded by peft."""
    prompts = [example for example in mix if isinstance(example, Prompted)]
    chosen = prompts[:: max(1, len(prompts) // SHOWN_PROMPTS)][:SHOWN_PROMPTS]
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.eval()
    before = [say(model, tokenizer, example.prompt) for example in chosen]
    with warnings.catch_warnings():  # peft 0.21 reads a deprecated attribute of transformers
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
        tuned = PeftModel.from_pretrained(model, str(adapter)).eval()
    table = Table(title="Generated text, the exported adapter loaded with plain peft", show_lines=True)
    for column in ("prompt", "before", "after", "expected"):
        table.add_column(column)
    for example, words in zip(chosen, before, strict=True):
        table.add_row(example.prompt.strip(), words, say(tuned, tokenizer, example.prompt), example.completion.strip())
    console.print(table)
