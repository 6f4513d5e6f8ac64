"""BERTScore (Zhang et al. 2020, arXiv 1904.09675): how much of two texts' meaning agrees, by the tokens' contextual vectors.

Precision is the mean over the candidate's tokens of the largest cosine with a token of the reference, recall the same the other
way round, F1 their harmonic mean; without idf weights and without rescaling. As in the authors' package the special tokens around
a text may be matched but do not count in the means.

Written out because the packages do not do: the authors' bert_score (0.3.13, of 2023) needs matplotlib, pandas and a download at
import and use, and torchmetrics 1.9.0 sorts candidates and references by length, each for itself, so that in a batch of several
lengths it compares texts that do not belong together: "a dog" against "a dog" scores 0.09.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from flexlora_simulation.errors import DataError

BATCH = 32


class BertScore:
    """Scores by one encoder, loaded when it is first asked. layer: of its hidden states, from 1; None: the last."""

    def __init__(self, path: str, layer: int | None = None) -> None:
        self._path, self._layer = path, layer

    def __call__(self, predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> float:
        """The mean F1; of several references to a prediction the best counts."""
        several = [(one,) if isinstance(one, str) else tuple(one) for one in references]
        texts = list(dict.fromkeys([*predictions, *(text for one in several for text in one)]))
        embedded = dict(zip(texts, self._embed(texts), strict=True))
        best = [
            max(f1(*embedded[prediction], *embedded[text]) for text in others)
            for prediction, others in zip(predictions, several, strict=True)
        ]
        return sum(best) / len(best)

    @torch.no_grad()
    def _embed(self, texts: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
        """Each text's vectors of unit length (tokens, width), and whether each token counts (tokens,) bool."""
        tokenizer, model = self._loaded
        most = min(tokenizer.model_max_length, model.config.max_position_embeddings)
        found: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(texts), BATCH):
            made = tokenizer(
                list(texts[start : start + BATCH]),
                padding=True,
                truncation=True,
                max_length=most,
                return_special_tokens_mask=True,
                return_tensors="pt",
            )
            special = made.pop("special_tokens_mask").bool()
            hidden = model(**made, output_hidden_states=True).hidden_states
            vectors = torch.nn.functional.normalize(hidden[-1 if self._layer is None else self._layer], dim=-1)
            for own, there, apart in zip(vectors, made["attention_mask"].bool(), special, strict=True):
                found.append((own[there], ~apart[there]))
        return found

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer  # a second or more, where nothing is scored

        try:
            # a folder, or a hub's model that whoever simulates names
            tokenizer = AutoTokenizer.from_pretrained(self._path)  # nosec B615
            model = AutoModel.from_pretrained(self._path, use_safetensors=True)  # nosec B615
        except (OSError, ValueError) as error:
            raise DataError(f"workload.options.scorer: {self._path} is no encoder that loads ({error})") from error
        layers = model.config.num_hidden_layers
        if self._layer is not None and self._layer > layers:
            raise DataError(f"workload.options.scorer_layer: {self._layer}, but {self._path} has {layers} layers")
        return tokenizer, model.eval()


def f1(candidate: Tensor, counts: Tensor, reference: Tensor, reference_counts: Tensor) -> float:
    """F1 of two texts' vectors of unit length; 0 where one of them has no token that counts."""
    if not (counts.any() and reference_counts.any()):
        return 0.0
    cosines = candidate.double() @ reference.double().T
    precision = cosines.max(dim=1).values[counts].mean().item()
    recall = cosines.max(dim=0).values[reference_counts].mean().item()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
