"""Makes the demo's base model: a tokenizer and a small Llama, trained on generated narrative alone.

    python -m demo.make_model --out demo/model

One thread, seeded, deterministic algorithms: the same machine and library versions give the same bytes. Takes minutes.
"""

import argparse
import itertools
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo.world import KINDS, SCENERY, World, make_world, sentence, story

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
IGNORE_INDEX = -100  # the target that cross entropy skips
SEED = 7
STEPS, WARMUP, BATCH = 1400, 60, 24
PLAIN_STEPS = 500  # of plain sentences only: sayings from the start take the model far longer to learn a fact from
LEARNING_RATE = 3e-3


def make_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """A byte-level BPE that has a token for each word of the narrative and takes any other text byte by byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(f"tokenizer {SEED}")
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # never reached: training ends when every word is one token
        special_tokens=[PAD, BOS, EOS, UNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((story(world, rng) for _ in range(20_000)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained Llama of about a million parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(SEED)
    return LlamaForCausalLM(config)


def batches(world: World, tokenizer: PreTrainedTokenizerFast, name: str, plain: int) -> Iterator[torch.Tensor]:
    """Endless batches of stories, `(BATCH, tokens)` int64, padded on the right; `name` seeds them.

    The first `plain` batches state facts in plain sentences only.
    """
    rng = random.Random(f"{name} {SEED}")
    for number in itertools.count():
        texts = [story(world, rng, sayings_share=0.0 if number < plain else 0.5) + EOS for _ in range(BATCH)]
        yield tokenizer(texts, padding=True, return_tensors="pt").input_ids


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy in nats over the tokens that are not padding."""
    padding = torch.eq(ids, torch.tensor(model.config.pad_token_id))
    # padding is on the right, so a causal model's other positions never see it and need no mask
    loss: torch.Tensor = model(input_ids=ids, labels=ids.masked_fill(padding, IGNORE_INDEX)).loss
    return loss


def learning_rate(step: int) -> float:
    """Linear warm-up, then cosine decay to zero; `step` counts from 0."""
    return LEARNING_RATE * min((step + 1) / WARMUP, 0.5 * (1 + math.cos(math.pi * step / STEPS)))


def train(model: LlamaForCausalLM, stream: Iterator[torch.Tensor]) -> None:
    """Train in place for STEPS steps, printing progress."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    began, tokens = time.monotonic(), 0
    model.train()
    for step in range(STEPS):
        ids = next(stream)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        loss = loss_of(model, ids)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += ids.numel()
        if (step + 1) % 100 == 0:
            seconds = time.monotonic() - began
            print(
                f"step {step + 1}/{STEPS}  loss {loss.item():.3f}  {tokens / seconds:,.0f} tokens/s  {seconds:.0f} s",
                flush=True,
            )


@torch.no_grad()
def heldout_loss(model: LlamaForCausalLM, stream: Iterator[torch.Tensor], count: int = 10) -> float:
    """Mean loss over stories that training did not see, in nats per token."""
    return sum(loss_of(model, next(stream)).item() for _ in range(count)) / count


@torch.no_grad()
def recall(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, world: World) -> dict[str, float]:
    """For each kind, the share of facts whose every token is the model's first choice, each in one wording drawn."""
    rng = random.Random(f"recall {SEED}")
    right = dict.fromkeys(KINDS, 0)
    for person, kind in itertools.product(world.people, KINDS):
        text = f"{SCENERY[0]} {sentence(person, kind, rng)}"
        ids = tokenizer(text, return_tensors="pt").input_ids[0]
        before = text[: text.rindex(f" {person.phrase(kind)}")]
        start, count = len(tokenizer(before).input_ids), len(tokenizer(f" {person.phrase(kind)}").input_ids) - 1
        chosen = model(input_ids=ids[None]).logits[0, start - 1 : start - 1 + count].argmax(-1)
        right[kind] += bool(torch.equal(chosen, ids[start : start + count]))
    return {kind: number / len(world.people) for kind, number in right.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, save into `--out`, load what was saved and print how good it is."""
    parser = argparse.ArgumentParser(description="Train the demo's base model on generated narrative.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and its tokenizer")
    out: Path = parser.parse_args(arguments).out
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    world = make_world()
    tokenizer = make_tokenizer(world)
    model = make_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens, {len(world.people)} people", flush=True)
    train(model, batches(world, tokenizer, "train", PLAIN_STEPS))
    model.bfloat16().save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # the library leaves it to its owner alone
    tokenizer.save_pretrained(out)
    saved = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
    saved.train(False)
    loss, shares = heldout_loss(saved, batches(world, tokenizer, "heldout", 0)), recall(saved, tokenizer, world)
    print(
        f"saved in {out}: held-out narrative loss {loss:.3f} nats per token, facts recalled "
        + ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items())
    )


if __name__ == "__main__":
    main()
