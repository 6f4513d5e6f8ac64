"""The layout is PEFT's: the same keys and shapes as a real PEFT model saves."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save

from flexlora_shared.layout import KEY_PREFIX, adapter_shapes, header_limit, key_A, key_B, key_extra, size_bounds
from flexlora_shared.messages.runs import ExtraTensor, ModuleSpec
from flexlora_shared.ranks import longest_first, module_ranks


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = torch.nn.Linear(12, 16, bias=False)
        self.up_proj = torch.nn.Linear(16, 24)


class Classifier(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.ModuleList(Block() for _ in range(2))
        self.classifier = torch.nn.Linear(24, 3)
        self.score = torch.nn.Linear(24, 5, bias=False)


MODULES = [
    ModuleSpec(name=f"encoder.{layer}.{name}", out_features=out_features, in_features=in_features)
    for layer in range(2)
    for name, out_features, in_features in (("q_proj", 16, 12), ("up_proj", 24, 16))
]
EXTRA = [
    ExtraTensor(name="classifier.weight", shape=(3, 24)),
    ExtraTensor(name="classifier.bias", shape=(3,)),
    ExtraTensor(name="score.weight", shape=(5, 24)),
]


@pytest.mark.parametrize("pattern", [{}, {"up_proj": 2, "encoder.1.up_proj": 7}], ids=str)
def test_keys_and_shapes_are_those_of_a_peft_model(pattern: dict[str, int]) -> None:
    config = LoraConfig(
        r=4,
        target_modules=["q_proj", "up_proj"],
        modules_to_save=["classifier", "score"],
        rank_pattern=longest_first(pattern),
    )
    model = get_peft_model(Classifier(), config)
    saved = {key: tuple(tensor.shape) for key, tensor in get_peft_model_state_dict(model).items()}
    ranks = module_ranks(MODULES, 4, pattern)
    assert adapter_shapes(MODULES, EXTRA, ranks) == saved


def test_keys() -> None:
    assert key_A("a.b") == KEY_PREFIX + "a.b.lora_A.weight"
    assert key_B("a.b") == KEY_PREFIX + "a.b.lora_B.weight"
    assert key_extra("classifier.bias") == KEY_PREFIX + "classifier.bias"


shapes = st.dictionaries(
    st.from_regex(r"[a-z]{1,40}", fullmatch=True),
    st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    min_size=1,
    max_size=6,
)


@given(shapes, st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_every_real_file_lies_within_the_bounds(expected: dict[str, tuple[int, ...]], dtype: torch.dtype) -> None:
    data = save({key: torch.zeros(*shape, dtype=dtype) for key, shape in expected.items()}, {"format": "pt"})
    least, most = size_bounds(expected)
    assert least < len(data) < most
    assert int.from_bytes(data[:8], "little") <= header_limit(expected)
