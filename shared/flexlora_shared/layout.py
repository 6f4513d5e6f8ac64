"""The adapter's tensors: PEFT's key names, and which tensors of which shapes an adapter file must hold.

PEFT conventions: `lora_A` is (r, in_features), `lora_B` is (out_features, r); the update is `scaling * B @ A`.
"""

import math
from collections.abc import Iterable, Mapping

from flexlora_shared.messages.runs import ExtraTensor, ModuleSpec, RunSpec, TaskType

KEY_PREFIX = "base_model.model."
DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
ACCEPTED_DTYPES = frozenset(DTYPE_BYTES)


def key_A(module: str) -> str:
    """The key of a module's `lora_A` in `adapter_model.safetensors`."""
    return f"{KEY_PREFIX}{module}.lora_A.weight"


def key_B(module: str) -> str:
    """The key of a module's `lora_B`."""
    return f"{KEY_PREFIX}{module}.lora_B.weight"


def key_extra(name: str) -> str:
    """The key of a tensor outside LoRA (a classification head; PEFT `modules_to_save`)."""
    return f"{KEY_PREFIX}{name}"


def saved_modules(extra: Iterable[ExtraTensor]) -> list[str]:
    """The modules that PEFT must keep whole for these tensors: it always wraps a head, `classifier` or `score`, as one module."""
    heads = {tensor.name: tensor.name.partition(".")[0] for tensor in extra}
    return sorted({h if h in {"classifier", "score"} else name.rpartition(".")[0] for name, h in heads.items()})


def peft_task_type(spec: RunSpec) -> TaskType | None:
    """PEFT's name of the task. It has none for images, and would train a classifier's head where the run has it frozen."""
    task = spec.model.task_type
    frozen = task in {"SEQ_CLS", "TOKEN_CLS"} and not spec.extra
    return None if frozen or task == "IMAGE_CLASSIFICATION" else task


def adapter_shapes(
    modules: Iterable[ModuleSpec], extra: Iterable[ExtraTensor], ranks: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """Every tensor of an adapter file by key, in file order, with its shape; `ranks` by module name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for module in modules:
        shapes[key_A(module.name)] = (ranks[module.name], module.in_features)
        shapes[key_B(module.name)] = (module.out_features, ranks[module.name])
    for tensor in extra:
        shapes[key_extra(tensor.name)] = tensor.shape
    return shapes


def header_limit(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Most bytes a safetensors header of these tensors may take: 200 a tensor beside its name, 4096 of metadata."""
    return 4096 + sum(200 + len(name.encode()) for name in shapes)


def size_bounds(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Least and most bytes of a file holding these tensors in accepted dtypes."""
    elements = sum(math.prod(shape) for shape in shapes.values())
    return 8 + elements * min(DTYPE_BYTES.values()), 8 + header_limit(shapes) + elements * max(DTYPE_BYTES.values())
