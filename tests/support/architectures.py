"""Tiny models of many architectures, random weights made from transformers' own configurations, with what they read."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from flexlora_client.training.models.task_classes import AUTO_CLASSES
from flexlora_shared.messages.runs import ProblemType, TaskType
from tests.support.tiny_models import LABELS, make_tokenizer

VOCABULARY = 304
TOKENS: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 300}
SMALL: dict[str, Any] = TOKENS | {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
GROUPED: dict[str, Any] = SMALL | {"num_key_value_heads": 1, "head_dim": 4}  # a k_proj of 4 rows, less than rank 8
EXPERTS: dict[str, Any] = GROUPED | {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
IMAGE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
    "initializer_range": 0.2,
}


@dataclass(frozen=True)
class Architecture:
    """One row of the table: a model and a task."""

    name: str
    task: TaskType
    model_type: str
    settings: dict[str, Any] = field(default_factory=lambda: dict(SMALL))
    refused: str = ""  # part of the sentence with which `describe` refuses it
    problem: ProblemType = "single-label"
    pairs: bool = False  # its tokenizer joins pairs of texts and gives token_type_ids
    wraps: Callable[[PretrainedConfig], PreTrainedModel] | None = None  # the model saved, where it is not the task's

    @property
    def labels(self) -> tuple[str, ...]:
        return LABELS if self.task in {"SEQ_CLS", "TOKEN_CLS", "IMAGE_CLASSIFICATION"} else ()

    def make(self, folder: Path) -> Path:
        """Write the model and its tokenizer or image processor; the folder."""
        torch.manual_seed(0)
        config = AutoConfig.for_model(self.model_type, **self.settings)
        if self.wraps is not None:
            model = self.wraps(config)
        elif self.refused:
            config.save_pretrained(folder)
            model = None
        else:
            if self.labels:
                config.num_labels = len(self.labels)
            config.architectures = []
            model = AUTO_CLASSES[self.task].from_config(config)
        if model is not None:
            model.save_pretrained(folder)
        if self.task == "IMAGE_CLASSIFICATION":
            transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
        else:
            tokenizer = make_tokenizer(pairs=self.pairs)
            tokenizer.add_special_tokens({"pad_token": "<pad>"})
            tokenizer.save_pretrained(folder)
        return folder


def causal(name: str, settings: dict[str, Any], **more: Any) -> Architecture:
    """A language model whose model type is its name without what follows a space."""
    return Architecture(name, "CAUSAL_LM", name.split()[0], settings, **more)


def masked(name: str, **settings: Any) -> Callable[[PretrainedConfig], PreTrainedModel]:
    """Another class of transformers to save as the base model."""
    return lambda config: getattr(transformers, name)(config, **settings)


MLA: dict[str, Any] = EXPERTS | {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "head_dim": 4,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
SSM: dict[str, Any] = {"state_size": 4, "conv_kernel": 4, "time_step_rank": 8, "expand": 2}
ENCODED: dict[str, Any] = SMALL | {"type_vocab_size": 1, "pad_token_id": 2}
T5: dict[str, Any] = TOKENS | {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 300,
    "dropout_rate": 0.0,
}
BART: dict[str, Any] = TOKENS | {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 64,
    "init_std": 0.2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": 1,
}
ENCODER = "it would see the tokens"

ARCHITECTURES: tuple[Architecture, ...] = (
    causal("llama", GROUPED),
    causal("mistral", GROUPED),
    causal("qwen2", GROUPED),
    causal("qwen3", GROUPED),
    causal("gemma3_text", GROUPED | {"sliding_window": 32}),
    Architecture(
        "gemma3",
        "CAUSAL_LM",
        "gemma3",
        TOKENS
        | {
            "text_config": GROUPED,
            "vision_config": IMAGE | {"vision_use_head": False},
            "mm_tokens_per_image": 4,
            "image_token_index": 301,
            "boi_token_index": 302,
            "eoi_token_index": 303,
        },
    ),
    causal("phi3", SMALL),
    causal("gpt2", TOKENS | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    causal("gpt_neox", SMALL),
    causal("opt", SMALL | {"ffn_dim": 24, "word_embed_proj_dim": 32}),
    causal("bloom", TOKENS | {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    causal("falcon", SMALL),
    causal("mamba", SMALL | SSM),
    causal(
        "falcon_h1",
        GROUPED | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8},
    ),
    causal("mixtral", EXPERTS),
    causal(
        "qwen2_moe",
        EXPERTS | {"shared_expert_intermediate_size": 16, "decoder_sparse_step": 1},
    ),
    causal("qwen3_moe", EXPERTS | {"decoder_sparse_step": 1}),
    causal("olmoe", EXPERTS | {"head_dim": 8}),
    causal("gpt_oss", EXPERTS | {"sliding_window": 32}),
    causal("deepseek_v3", MLA),
    causal("glm4_moe", MLA | {"num_key_value_heads": 1}),
    causal(
        "qwen3_next",
        EXPERTS
        | {
            "shared_expert_intermediate_size": 16,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    causal(
        "jamba",
        EXPERTS
        | {
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "use_mamba_kernels": False,
            "mamba_d_state": 4,
            "mamba_dt_rank": 8,
        },
    ),
    *(causal(name, SMALL, refused=ENCODER) for name in ("bert", "roberta", "electra", "xlm-roberta")),
    causal("whisper", {"d_model": 32, "vocab_size": 304}, refused="SEQ_2_SEQ_LM"),
    Architecture("bert SEQ_CLS", "SEQ_CLS", "bert", pairs=True),
    Architecture("roberta SEQ_CLS", "SEQ_CLS", "roberta", ENCODED),
    Architecture("electra SEQ_CLS", "SEQ_CLS", "electra", SMALL | {"embedding_size": 16}),
    Architecture("bert SEQ_CLS, no pooler saved", "SEQ_CLS", "bert", wraps=masked("BertForMaskedLM")),
    Architecture("llama SEQ_CLS", "SEQ_CLS", "llama", GROUPED),
    Architecture("xlm-roberta SEQ_CLS", "SEQ_CLS", "xlm-roberta", ENCODED, problem="multi-label"),
    Architecture("deberta-v2 SEQ_CLS", "SEQ_CLS", "deberta-v2", SMALL, problem="regression"),
    Architecture("albert SEQ_CLS", "SEQ_CLS", "albert", SMALL | {"embedding_size": 16}),
    Architecture("modernbert SEQ_CLS", "SEQ_CLS", "modernbert", SMALL | {"cls_token_id": 0, "sep_token_id": 1}),
    Architecture("bert TOKEN_CLS", "TOKEN_CLS", "bert"),
    Architecture(
        "distilbert TOKEN_CLS",
        "TOKEN_CLS",
        "distilbert",
        TOKENS | {"dim": 32, "hidden_dim": 24, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64},
    ),
    Architecture("t5", "SEQ_2_SEQ_LM", "t5", T5),
    Architecture("bart", "SEQ_2_SEQ_LM", "bart", BART),
    Architecture("vit", "IMAGE_CLASSIFICATION", "vit", IMAGE),
    Architecture("deit", "IMAGE_CLASSIFICATION", "deit", IMAGE),
    Architecture(
        "swin",
        "IMAGE_CLASSIFICATION",
        "swin",
        {
            "image_size": 16,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [1, 1],
            "num_heads": [2, 2],
            "window_size": 2,
            "initializer_range": 0.2,
        },
    ),
)
