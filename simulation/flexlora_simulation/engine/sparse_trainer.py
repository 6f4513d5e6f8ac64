"""SLoRA's first stage: a few numbers of each adapted matrix are trained in full (Babakniya et al. 2023, arXiv 2308.06522).

The change of a matrix is written as an adapter of the matrix's whole rank, one factor of which is the identity: then training the
other factor trains the matrix itself, by the agent's own loop. Which numbers of it are trained is drawn from the run's seed, the
same for every participant and every round; the others have no gradient, and AdamW leaves what has none as it is. Everybody's
adapters have full rank, so the coordinator averages the matrices exactly, and the run that starts from the last one begins
with its SVD.

The paper sends the trained numbers alone; here the bytes of an update are those of a full adapter.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from flexlora_client.errors import BadInput
from flexlora_client.training.contract import Job, Outcome
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.models.layers import TRAINED_ADAPTER, lora_layers
from flexlora_client.training.models.load_model import LoadedModel, Models
from flexlora_client.training.models.slice_files import LoadedSlice, read_slice
from flexlora_server.aggregation.factors import named_generator
from flexlora_shared.layout import key_A, key_B
from flexlora_shared.messages.runs import ModuleSpec, RunSpec
from flexlora_shared.messages.tasks import Trainable


class SparseTrainer(StandardTrainer):
    """The agent's own loop on a share `density` of each adapted matrix; tensors beside LoRA are trained as ever."""

    supports: tuple[Trainable, ...] = ("slice",)

    def __init__(self, models: Models, density: float) -> None:
        super().__init__(models)
        self._density = density
        self._masks: list[RemovableHandle] = []

    def train(self, job: Job) -> Outcome:
        """Train one round; see `contract.Trainer`.

        Raises:
            BadInput: a module's rank is less than its weight has, or the run has weight decay, which no mask holds back.
            Else as `StandardTrainer.train`.
        """
        if job.spec.training.weight_decay:
            raise BadInput("training.weight_decay changes every number of a matrix; sparse training needs 0")
        try:
            return super().train(job)
        finally:
            for mask in self._masks:
                mask.remove()
            self._masks.clear()

    def _start(self, job: Job) -> LoadedModel:
        served = read_slice(job.adapter, job.spec)
        loaded = self._models.with_slice(
            _in_full(served, job.spec), job.spec, job.device, job.model_path, compute=job.compute
        )
        layers = dict(lora_layers(loaded.model))
        for module in job.spec.modules:
            A, B = _weight(layers[module.name].lora_A), _weight(layers[module.name].lora_B)
            trained, identity = (B, A) if _keeps_A(module) else (A, B)
            identity.requires_grad_(False)
            mask = torch.rand(trained.shape, generator=named_generator(job.spec.seed, module.name)) < self._density
            masked = partial(torch.mul, mask.to(trained.device))
            self._masks.append(trained.register_hook(masked))  # type: ignore[no-untyped-call]
        return loaded


def _weight(factors: torch.nn.ModuleDict) -> Tensor:
    weight = factors[TRAINED_ADAPTER].weight
    assert isinstance(weight, Tensor)  # of a linear layer
    return weight


def _keeps_A(module: ModuleSpec) -> bool:
    return module.out_features >= module.in_features


def _in_full(served: LoadedSlice, spec: RunSpec) -> LoadedSlice:
    """The slice's matrices W = s B A, each as s W (I / s), or s (I / s) W where it is wider than high. Raises: BadInput."""
    tensors = dict(served.tensors)
    for module in spec.modules:
        A, B = (served.tensors[key(module.name)].double() for key in (key_A, key_B))
        whole, scaling = min(module.out_features, module.in_features), served.config.scaling_of(module.name)
        if len(A) != whole:
            raise BadInput(f"{module.name} has rank {len(A)}; sparse training needs its whole rank, {whole}")
        W, identity = scaling * B @ A, torch.eye(whole, dtype=torch.float64) / scaling
        A, B = (identity, W) if _keeps_A(module) else (W, identity)
        tensors |= {key_A(module.name): A.float(), key_B(module.name): B.float()}
    return replace(served, tensors=tensors)
