"""The dtypes of adapter files in NumPy, with bfloat16 from ml_dtypes, and rounding to them bit for bit as PyTorch rounds."""

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from flexlora_shared.messages.runs import RunSpec

Array = NDArray[np.generic]
DTYPES: dict[str, np.dtype[np.generic]] = {  # by their names in safetensors files
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


def slice_dtype(spec: RunSpec) -> str:
    """The dtype of a run's slices, by its name in safetensors files."""
    return {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[spec.upload_dtype]


def to_dtype(array: Array, dtype: np.dtype[np.generic]) -> Array:
    """`array` in `dtype`, itself where it has that already; infinite where a value is too large.

    Rounds through float32, as PyTorch does: float64 to 16 bits in two steps sometimes gives another neighbour than in one.
    """
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False).astype(dtype, copy=False)
