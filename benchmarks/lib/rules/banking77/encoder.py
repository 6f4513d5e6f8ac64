"""A frozen BERT encoder with LoRA on every layer's query and value, without padding: 24 questions at once, twice as fast.

Questions differ in length, so a padded batch is half padding. Here the tokens of a batch stand one after another in one
matrix, and are padded for the attention alone. The embeddings are below every adapter and are computed once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear
from transformers import BertModel
from transformers.models.bert.modeling_bert import BertLayer

ADAPTED = ("query", "value")


@dataclass(frozen=True)
class Batch:
    """Questions of `longest` tokens at most, one after another.

    embedded: (tokens, width), what the embedding layer makes of them. question: (tokens,), which one a token belongs to.
    place: (tokens,), the row it has among questions * longest padded ones. mask: (questions, 1, 1, longest), its tokens.
    """

    embedded: Tensor
    question: Tensor
    place: Tensor
    mask: Tensor

    @property
    def lengths(self) -> Tensor:
        """(questions,): how many tokens each one has."""
        return self.mask.sum(-1).flatten()


def batch(embedded: Sequence[Tensor]) -> Batch:
    """These questions, each (tokens, width), as one batch."""
    lengths = torch.tensor([len(each) for each in embedded])
    longest = int(lengths.max())
    question = torch.arange(len(embedded)).repeat_interleave(lengths)
    mask = torch.arange(longest) < lengths[:, None]
    return Batch(torch.cat(list(embedded)), question, mask.flatten().nonzero()[:, 0], mask[:, None, None])


@dataclass(frozen=True)
class LoRA:
    """What is added to one linear layer: `B @ A`, A (r, k) and B (d, r), the scaling in B."""

    A: Tensor
    B: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return linear(linear(x, self.A), self.B)


@dataclass(frozen=True)
class Encoder:
    """The layers of a BERT; `dtype`: of the frozen matrix products, everything between them is float32."""

    model: BertModel
    dtype: torch.dtype = torch.float32

    @property
    def width(self) -> int:
        """The hidden size."""
        return int(self.model.config.hidden_size)

    @property
    def modules(self) -> int:
        """How many linear layers are adapted."""
        return len(ADAPTED) * len(self.model.encoder.layer)

    def embed(self, tokens: Tensor) -> Tensor:
        """One question's embeddings (tokens, width)."""
        with torch.no_grad():
            embedded: Tensor = self.model.embeddings(tokens[None])[0]
        return embedded

    def pooled(self, given: Batch, adapter: Sequence[LoRA]) -> Tensor:
        """The mean over each question's tokens (questions, width); `adapter`: query, value, query, value, ... by layer."""
        x = given.embedded
        for number, layer in enumerate(self.model.encoder.layer):
            assert isinstance(layer, BertLayer)
            x = self._layer(layer, x, given, adapter[2 * number], adapter[2 * number + 1])
        total = x.new_zeros(len(given.mask), self.width).index_add(0, given.question, x)
        return total / given.lengths[:, None]

    def _layer(self, layer: BertLayer, x: Tensor, given: Batch, query: LoRA, value: LoRA) -> Tensor:
        attention, dense = layer.attention.self, layer.attention.output
        q = self._frozen(attention.query, x) + query(x)
        v = self._frozen(attention.value, x) + value(x)
        mixed = attend(q, self._frozen(attention.key, x), v, given, attention.num_attention_heads)
        x = _normal(dense.LayerNorm, self._frozen(dense.dense, mixed) + x)
        wide = gelu(self._frozen(layer.intermediate.dense, x))
        return _normal(layer.output.LayerNorm, self._frozen(layer.output.dense, wide) + x)

    def _frozen(self, module: torch.nn.Linear, x: Tensor) -> Tensor:
        return linear(x.to(self.dtype), module.weight.to(self.dtype)).float() + module.bias


def attend(q: Tensor, k: Tensor, v: Tensor, given: Batch, heads: int) -> Tensor:
    """Attention within each question; all (tokens, width)."""
    questions, longest = len(given.mask), given.mask.shape[-1]

    def padded(x: Tensor) -> Tensor:
        rows = x.new_zeros(questions * longest, x.shape[1]).index_copy(0, given.place, x)
        return rows.view(questions, longest, heads, -1).transpose(1, 2)

    scores = padded(q) @ padded(k).mT / (q.shape[1] // heads) ** 0.5  # so short: faster than torch's fused attention
    mixed = scores.masked_fill(~given.mask, -torch.inf).softmax(-1) @ padded(v)
    rows: Tensor = mixed.transpose(1, 2).reshape(questions * longest, -1)
    return rows[given.place]


def _normal(norm: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    return layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
