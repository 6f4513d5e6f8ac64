"""Images: from what a row holds to the bytes of an encoded file that can be opened."""

import io
import warnings
from pathlib import Path

from flexlora_client.training.data.rows import RowError


def image_bytes(value: object, folder: Path) -> bytes:
    """The encoded image of a row: its bytes, or the file it names (from `folder`, that of the data file).

    Its header is read, not its pixels. Raises: RowError.
    """
    content = _content(value, folder)
    from PIL import Image, UnidentifiedImageError  # only runs on images need it

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.open(io.BytesIO(content)).close()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise RowError(f"its image is too large ({error}); make it smaller or delete the row.") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        raise RowError("its image cannot be opened; save it as PNG or JPEG, or delete the row.") from None
    return content


def _content(value: object, folder: Path) -> bytes:
    if isinstance(value, dict):  # as the library `datasets` writes images
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if value in ("", None):
        raise RowError("its image is empty; name a file or delete the row.")
    if not isinstance(value, str):
        raise RowError(f"its image is a {type(value).__name__}; it must be the name of a file, or a file's bytes.")
    try:
        return (folder / value).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RowError(f"its image {value[:200]} cannot be read ({reason}); mend the name or delete the row.") from None
