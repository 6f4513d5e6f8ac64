"""Which of transformers' classes loads a model for a task, with which configuration, and which models do not suit a task."""

from typing import Any, Literal

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from flexlora_client.errors import ModelError
from flexlora_shared.messages.runs import ModelSpec, ProblemType, TaskType
from flexlora_shared.run_checks import LABELLED

AUTO_CLASSES: dict[TaskType, Any] = {
    "CAUSAL_LM": AutoModelForCausalLM,
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM,
    "IMAGE_CLASSIFICATION": AutoModelForImageClassification,
}
PROBLEM_TYPES: dict[ProblemType, Literal["single_label_classification", "multi_label_classification", "regression"]] = {
    "single-label": "single_label_classification",
    "multi-label": "multi_label_classification",
    "regression": "regression",
}
# Encoders and permutation models whose classes for causal language modelling see the tokens that they predict, beside
# the types with a masked-language-model class
_OTHER_BIDIRECTIONAL = frozenset(["bert-generation", "xlnet"])


def load_config(path: str, revision: str | None, model: ModelSpec) -> PretrainedConfig:
    """The model's configuration with the run's labels and problem type in it.

    Raises:
        ModelError: a model of this configuration cannot do the run's task.
        OSError, ValueError, KeyError: it does not load.
    """
    if model.task_type in LABELLED and not model.labels:
        raise ModelError("the run classifies but has no labels; its operator must define them.")
    config: PretrainedConfig = AutoConfig.from_pretrained(path, revision=revision or "main", trust_remote_code=False)
    _check_suits(path, config, model.task_type)
    config.architectures = (
        config.architectures or []
    )  # where a task has several classes, transformers looks for one here
    if model.labels:
        config.id2label = dict(enumerate(model.labels))
        config.label2id = {label: index for index, label in config.id2label.items()}
    if model.task_type in {"SEQ_CLS", "IMAGE_CLASSIFICATION"}:
        config.problem_type = PROBLEM_TYPES[model.problem_type]
    return config


def class_options(model: ModelSpec) -> dict[str, Any]:
    """What `from_pretrained` of the task's class needs beside path, revision and configuration.

    Of a model that somebody else names nothing is run: no code of its repository, and no weights that are unpickled.
    """
    resized = bool(model.labels)  # of a head for other classes
    return {"trust_remote_code": False, "use_safetensors": True, "ignore_mismatched_sizes": resized}


def _check_suits(path: str, config: PretrainedConfig, task_type: TaskType) -> None:
    if task_type == "CAUSAL_LM" and getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{path} is an encoder-decoder model ({config.model_type}): its decoder alone is no causal language model; "
            "use task type SEQ_2_SEQ_LM."
        )
    if task_type == "CAUSAL_LM" and _sees_what_it_predicts(config):
        raise ModelError(
            f"{path} is an encoder ({config.model_type}): as a causal language model it would see the tokens that it is "
            "to predict; use SEQ_CLS or TOKEN_CLS, or a decoder model."
        )


def _sees_what_it_predicts(config: PretrainedConfig) -> bool:
    """Whether attention is not causal: an encoder that its configuration does not turn into a decoder."""
    bidirectional = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES or config.model_type in _OTHER_BIDIRECTIONAL
    return bidirectional and not (getattr(config, "is_decoder", False) or getattr(config, "causal", False))
