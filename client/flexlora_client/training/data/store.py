"""A sequence of examples that need not fit in memory."""

import pickle
import threading
import weakref
from array import array
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import overload

import numpy as np
from numpy.typing import NDArray

from flexlora_client.errors import DataError
from flexlora_client.training.data.examples import Example

IN_MEMORY = 64 << 20  # bytes; what is more goes to a file


class ExampleStore:
    """Examples in the order in which they were added.

    They lie in memory, beyond IN_MEMORY bytes in a temporary file without a name in `folder` (None: the system's), which
    vanishes with the process. Reading is safe from several threads, not from a forked process.
    """

    def __init__(self, seed: int, folder: Path | None = None, in_memory: int | None = None) -> None:
        self._seed = seed
        self._file = SpooledTemporaryFile(max_size=in_memory or IN_MEMORY, dir=str(folder) if folder else None)  # noqa: SIM115  # closed by the finalizer
        self._starts, self._lengths, self._keys = array("q", [0]), array("q"), array("Q")
        self._kinds, self._known = array("B"), list[type[Example]]()  # of each example, its place among those known
        self._lock = threading.Lock()
        weakref.finalize(self, self._file.close)

    def add(self, example: Example) -> None:
        """Append an example. Raises: DataError, where there is no room for it."""
        content = pickle.dumps(example, protocol=5)
        try:
            self._file.write(content)
        except OSError as error:
            raise DataError(
                f"the examples cannot be kept in a temporary file ({error.strerror or error}); make room, or set "
                "FLEXLORA_HOME or --home to a disk that has some."
            ) from error
        self._starts.append(self._starts[-1] + len(content))
        self._lengths.append(example.characters)
        self._keys.append(key_of(example, self._seed))
        if type(example) not in self._known:
            self._known.append(type(example))
        self._kinds.append(self._known.index(type(example)))

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> Example:
        start, end = self._starts[index], self._starts[index + 1]
        with self._lock:
            self._file.seek(start)
            content = self._file.read(end - start)
        example: Example = pickle.loads(content)  # our own bytes, from a file that no other process can open  # nosec B301
        return example

    @property
    def lengths(self) -> NDArray[np.int64]:
        """`characters` of each example (n,)."""
        return np.array(self._lengths, dtype=np.int64)

    @property
    def keys(self) -> NDArray[np.uint64]:
        """`key_of` each example (n,)."""
        return np.array(self._keys, dtype=np.uint64)

    def are(self, kinds: tuple[type, ...]) -> NDArray[np.bool_]:
        """Whether each example is of one of these types (n,)."""
        fitting = [place for place, kind in enumerate(self._known) if issubclass(kind, kinds)]
        return np.isin(np.array(self._kinds), fitting)


class Selection(Sequence[Example]):
    """Some examples of a store, by their indices."""

    def __init__(self, store: ExampleStore, indices: NDArray[np.intp]) -> None:
        self._store, self._indices = store, indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "Selection": ...
    def __getitem__(self, index: int | slice) -> "Example | Selection":
        if isinstance(index, slice):
            return Selection(self._store, self._indices[index])
        return self._store[int(self._indices[index])]

    @property
    def lengths(self) -> list[int]:
        """`characters` of each example, without reading them."""
        chosen: list[int] = self._store.lengths[self._indices].tolist()
        return chosen

    @property
    def keys(self) -> NDArray[np.uint64]:
        """`key_of` each example (n,), without reading them."""
        return self._store.keys[self._indices]

    def of_kinds(self, kinds: tuple[type, ...]) -> "Selection":
        """Those of these types, without reading them."""
        return Selection(self._store, self._indices[self._store.are(kinds)[self._indices]])

    def by_key(self) -> "Selection":
        """The same examples, ordered by their keys."""
        return Selection(self._store, self._indices[np.argsort(self.keys, kind="stable")])


def lengths_of(examples: Sequence[Example]) -> list[int]:
    """`characters` of each example."""
    return examples.lengths if isinstance(examples, Selection) else [example.characters for example in examples]


def of_kinds(examples: Sequence[Example], kinds: tuple[type, ...]) -> Sequence[Example]:
    """Those of these types."""
    if isinstance(examples, Selection):
        return examples.of_kinds(kinds)
    return [example for example in examples if isinstance(example, kinds)]


def by_key(examples: Sequence[Example]) -> Sequence[Example]:
    """The examples in an order that their content decides, those of a store without reading them."""
    return examples.by_key() if isinstance(examples, Selection) else sorted(examples, key=key_of)


def digest_of(examples: Sequence[Example]) -> bytes:
    """SHA-256 over the keys of the examples in their order."""
    if isinstance(examples, Selection):
        return sha256(examples.keys.astype("<u8").tobytes()).digest()
    return sha256(b"".join(key_of(example).to_bytes(8, "little") for example in examples)).digest()


def key_of(example: Example, seed: int = 0) -> int:
    """64 bits of a digest of the example's content and the seed: equal examples have equal keys."""
    digest = sha256(f"{seed}\0{example!r}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8])
