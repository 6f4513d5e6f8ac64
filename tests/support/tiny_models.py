"""Small real models, tokenizers, runs and slices for the tests of training."""

import json
import tempfile
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from flexlora_client.training.contract import Job
from flexlora_client.training.data.examples import Example
from flexlora_client.training.models.describe_model import Description, describe
from flexlora_shared.messages.runs import ModelSpec, RunSpec, TaskType, TrainingSpec

LABELS = ("bird", "fish", "tree")
CORPUS = [
    "What is the capital of France? Paris.",
    "The bird sings in the tree, the fish swims under it.",
    "user: hello assistant: good day",
]


def make_tokenizer(*, bos: bool = True, eos: bool = True, pairs: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 300 tokens, without a padding token, as Llama's; with `pairs`, it parts them as Bert's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    )
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    if pairs:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token="<s>" if bos else None,
        eos_token="</s>" if eos else None,
        model_input_names=["input_ids", *(["token_type_ids"] if pairs else []), "attention_mask"],
    )


def image_file(colour: tuple[int, int, int], side: int = 16) -> bytes:
    """A PNG of one colour."""
    content = BytesIO()
    Image.new("RGB", (side, side), colour).save(content, "PNG")
    return content.getvalue()


def make_llama(directory: Path) -> Path:
    """A Llama of 2 layers with its tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory


def make_bert(directory: Path) -> Path:
    """A Bert of 2 layers with its tokenizer, which has a padding token; its head is made for other classes."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=301,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertForSequenceClassification(config).save_pretrained(directory)
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(directory)
    return directory


def make_vit(directory: Path) -> Path:
    """A ViT of 2 layers for images of 8 x 8 pixels, with its image processor; its head is made for other classes."""
    torch.manual_seed(0)
    size: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    ViTForImageClassification(ViTConfig(**size, image_size=8, patch_size=4)).save_pretrained(directory)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(directory)
    return directory


@cache  # the same for all tests of one model: a trial adapter is placed for each description
def _described(base: str, config: bytes, task: TaskType, target: str | tuple[str, ...]) -> Description:
    """A model's description, made once for each content of its configuration."""
    return describe(base, task, target, LABELS if task == "SEQ_CLS" else ())


def make_run(
    base: Path,
    task: TaskType = "CAUSAL_LM",
    target: str | Sequence[str] = "all-linear",
    training: TrainingSpec | None = None,
    **fields: Any,
) -> RunSpec:
    """A run of the model, of ranks 2, 4 and 8; without the model's fingerprint, which clients made by hand cannot tell."""
    layers = target if isinstance(target, str) else tuple(target)
    described = _described(str(base), (base / "config.json").read_bytes(), task, layers)
    quick = TrainingSpec(learning_rate=0.01, epochs=6, batch_size=4, max_length=64)
    return RunSpec(
        name="test",
        model=described.model.model_copy(update={"fingerprint": None}),
        modules=described.modules,
        extra=described.extra,
        ranks=(2, 4, 8),
        rounds=3,
        training=training or quick,
        **fields,
    )


def load_base(base: Path, spec: RunSpec) -> PreTrainedModel:
    """The base model as plain transformers loads it."""
    return _load(base, spec.model)


def _load(base: Path, spec: ModelSpec) -> PreTrainedModel:
    auto: Any = AutoModelForCausalLM
    options: dict[str, Any] = {}
    if spec.task_type == "SEQ_CLS":
        auto = AutoModelForSequenceClassification
        options = {"num_labels": len(spec.labels), "ignore_mismatched_sizes": True}
    model: PreTrainedModel = auto.from_pretrained(base, **options)
    model.config.pad_token_id = 1 if model.config.pad_token_id is None else model.config.pad_token_id
    return model


def head_of(tensor: str) -> str:
    """The module PEFT saves for an extra tensor: its own, but `classifier` and `score`, which PEFT saves whole."""
    module = tensor.rpartition(".")[0]
    return module.split(".")[0] if module.split(".")[0] in ("classifier", "score") else module


def make_slice(directory: Path, base: Path, spec: RunSpec, rank: int = 4, *, seed: int = 0, **fields: Any) -> Path:
    """A slice as a coordinator serves it, made by PEFT itself: full module names, every tensor random (B too)."""
    heads = sorted({head_of(tensor.name) for tensor in spec.extra})
    options: dict[str, Any] = {
        "task_type": spec.model.task_type,
        "r": rank,
        "lora_alpha": 4 * rank,
        "target_modules": [module.name for module in spec.modules],
        "modules_to_save": heads or None,
    }
    directory.mkdir(parents=True, exist_ok=True)
    made = _slice_files(
        base, (base / "config.json").read_bytes(), spec.model.model_dump_json(), json.dumps(options | fields), seed
    )
    for name, content in made.items():
        (directory / name).write_bytes(content)
    return directory


@cache  # many tests begin with the same slice
def _slice_files(base: Path, config: bytes, model: str, options: str, seed: int) -> dict[str, bytes]:
    """Contents of a slice's files by their names."""
    fields = json.loads(options)
    torch.manual_seed(seed)
    peft = get_peft_model(_load(base, ModelSpec.model_validate_json(model)), LoraConfig(**fields))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    with tempfile.TemporaryDirectory() as folder:
        peft.save_pretrained(folder)
        edit_config(Path(folder), target_modules=fields["target_modules"])  # PEFT shortens lists of 20 and more
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def load_peft(base: Path, spec: RunSpec, adapter: Path) -> PeftModel:
    """The model as any user of PEFT gets it."""
    model = PeftModel.from_pretrained(load_base(base, spec), adapter)
    assert isinstance(model, PeftModel)
    return model


def make_job(spec: RunSpec, adapter: Path, train: Sequence[Example], output: Path, **fields: Any) -> Job:
    """A job of round 1 on the CPU."""
    options: dict[str, Any] = {
        "round": 1,
        "heldout": (),
        "device": "cpu",
        "model_path": None,
        "progress": lambda step, total, loss: None,
    }
    return Job(spec=spec, adapter=adapter, train=train, output=output, **(options | fields))


def edit_config(adapter: Path, **fields: Any) -> None:
    """Change fields of a slice's adapter_config.json."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def scale_tensors(adapter: Path, factor: float) -> None:
    """Multiply every tensor of a slice."""
    path = adapter / "adapter_model.safetensors"
    save_file({name: tensor * factor for name, tensor in load_file(path).items()}, path)
