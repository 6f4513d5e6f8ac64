"""What the workloads of images share: options of the head, PNG files, the base model."""

from collections.abc import Sequence
from io import BytesIO
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import Field

from flexlora_shared.messages.base import Message
from flexlora_simulation.workloads.contract import BaseModel
from flexlora_simulation.workloads.frozen_head import with_frozen_head

TARGET = ("q_proj", "v_proj")  # of transformers' ViT


class HeadOptions(Message):
    """The classifier's head."""

    head: Annotated[Literal["trained", "frozen"], Field(description="frozen: random, as it is drawn")] = "trained"
    head_norm: Annotated[float, Field(gt=0, description="Length of each class's weights in a frozen head")] = 1.0


def png(pixels: "Any") -> bytes:
    """The file of an image, uint8 of (height, width) or (height, width, 3)."""
    content = BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def classifier(model: str, labels: Sequence[str], options: HeadOptions) -> BaseModel:
    """The image classifier of these classes over `model`. Raises: DataError."""
    if options.head == "frozen":
        model = with_frozen_head(model, "IMAGE_CLASSIFICATION", labels, options.head_norm)
    return BaseModel(model, "IMAGE_CLASSIFICATION", tuple(labels), TARGET, options.head)
