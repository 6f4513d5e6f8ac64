"""Images to pixels, the same ones at every participant: decoded by Pillow, prepared by the model's own processor."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from flexlora_client.errors import DataError
from flexlora_client.training.data.examples import Pictured
from flexlora_client.training.encoding.encoded import Encoded

BROKEN = (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError)


def pictured(example: Pictured) -> Encoded:
    """The image as it is, once its header can be read. Raises: DataError."""
    try:
        with Image.open(BytesIO(example.image)) as image:
            image.verify()
    except BROKEN as error:
        raise _unreadable(error) from error
    return Encoded((), (example.label,), weight=1, image=example.image)


def pixels(images: Sequence[bytes], processor: Any) -> torch.Tensor:
    """What the model sees, (n, channels, height, width) float32. Raises: DataError."""
    decoded = [_decoded(image) for image in images]
    values: torch.Tensor = processor(images=decoded, return_tensors="pt")["pixel_values"]
    return values.float()


def _decoded(content: bytes) -> Image.Image:
    """The upright image in red, green and blue."""
    try:
        with Image.open(BytesIO(content)) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except BROKEN as error:
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> DataError:
    return DataError(f"an image cannot be read ({type(error).__name__}: {error}); save it anew or delete it.")
