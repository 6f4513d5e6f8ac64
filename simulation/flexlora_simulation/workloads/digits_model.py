"""The base model of the workload of digits: a small ViT, trained here once to tell turned images of the digits 0 to 4 apart.

It tells digit and turn (by 0 to 3 quarters), 20 classes. The other five digits it never sees. The training is the same each time
on one machine; on another one its last bits may differ, so a federation over several machines is given the folder of one as
`workload.model`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from flexlora_client.training.encoding.images import pixels
from flexlora_simulation.workloads.images import png
from flexlora_simulation.workloads.made_models import made_model

VIT: dict[str, Any] = {
    "image_size": 8,
    "patch_size": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_labels": 20,
}
BATCH, RATE, SEED = 64, 2e-3, 0


def pretrained_model(images: Any, digits: Any, steps: int) -> str:
    """A folder of the model after so many steps of AdamW; images (n, 8, 8) uint8, digits (n,) from 0 to 4."""
    made_of = {"config": VIT, "steps": steps, "batch": BATCH, "rate": RATE, "seed": SEED}
    return made_model("digits-vit", made_of, lambda folder: _train(images, digits, steps, folder))


def _train(images: Any, digits: Any, steps: int, folder: Path) -> None:
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8}, do_resize=False)
    turned = [np.ascontiguousarray(np.rot90(image, quarter)) for quarter in range(4) for image in images]
    seen = pixels([png(image) for image in turned], processor)
    classes = torch.from_numpy(np.concatenate([digits + 5 * quarter for quarter in range(4)]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = ViTForImageClassification(ViTConfig(**VIT))
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, max(steps, 1))
        for _ in range(steps):
            picked = torch.randint(len(classes), (BATCH,))
            loss = model(pixel_values=seen[picked], labels=classes[picked]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
