"""Multiple choice by likelihood, as EleutherAI's lm-evaluation-harness counts it.

`choice_accuracy` (its `acc`) takes the choice of the largest log-likelihood after the prompt, summed over its tokens;
`choice_accuracy_norm` (its `acc_norm`) that of the largest log-likelihood a character of the choice, white space at its ends
aside: the space that parts it from the prompt is none of the choice. The end-of-sequence token that training puts behind a
completion counts in neither.
"""

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import cross_entropy

from flexlora_client.training.data.examples import Choice
from flexlora_client.training.encoding.batches import collate, predictions
from flexlora_client.training.encoding.encoder import Encoder, NothingToLearn
from flexlora_client.training.models.load_model import LoadedModel


def choose(
    loaded: LoadedModel, encoder: Encoder, examples: Sequence[Choice], size: int, over: Callable[[], bool]
) -> tuple[dict[str, float], int]:
    """The two accuracies over the first of the examples, as many as there is time for (one batch at least); their number."""
    plain = norm = measured = done = 0
    while done < len(examples) and not (done and over()):
        for example in examples[done : done + size]:
            done += 1
            try:
                sums = _log_likelihoods(loaded, encoder, example, size)
            except NothingToLearn:  # the run's max_length has no room for it
                continue
            likeliest, likeliest_for_its_length = picked(sums, example.choices)
            plain += likeliest == example.answer
            norm += likeliest_for_its_length == example.answer
            measured += 1
    figures = {"choice_accuracy": plain / measured, "choice_accuracy_norm": norm / measured} if measured else {}
    return figures, done


def picked(sums: torch.Tensor, choices: Sequence[str]) -> tuple[int, int]:
    """The choices of the largest log-likelihood (choices,), as a whole and a character."""
    lengths = torch.tensor([max(1, len(choice.strip())) for choice in choices])
    return int(sums.argmax()), int((sums / lengths).argmax())


@torch.no_grad()
def _log_likelihoods(loaded: LoadedModel, encoder: Encoder, example: Choice, size: int) -> torch.Tensor:
    """Each choice's log-likelihood in nats, (choices,) float64."""
    rows = encoder.choices(example)
    sums: list[torch.Tensor] = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        logits, targets = predictions(loaded, collate(part, loaded))
        scores = -cross_entropy(logits, targets, reduction="none")
        scores[torch.isin(targets, torch.tensor(loaded.stop_ids, device=targets.device))] = 0.0
        sums += [one.double().sum() for one in torch.split(scores, [row.weight for row in part])]
    return torch.stack(sums).cpu()
