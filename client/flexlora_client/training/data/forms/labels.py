"""Labels: from what files hold to indices into the run's labels, or to numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flexlora_client.training.data.forms.values import number_of
from flexlora_client.training.data.rows import ClassName, RowError

Names = Mapping[str, str]


@dataclass(frozen=True)
class Labels:
    """The run's labels, and how the participant's files call them."""

    names: Sequence[str]
    renamed: Names = field(default_factory=dict)

    def index(self, value: object) -> int:
        """The label that a value names; by name, else by index from 0, else of two labels as false or true. Raises: RowError."""
        named = self.renamed.get(str(value), value)
        spelled = str(named) if isinstance(named, int) else named
        if (
            isinstance(spelled, str) and spelled in self.names
        ):  # one that looks like a number is a name in every kind of file
            return self.names.index(spelled)
        index = -1 if isinstance(named, ClassName) else _as_index(named)
        if isinstance(named, bool) or spelled in ("True", "False", "true", "false"):
            index = int(spelled in ("True", "true")) if len(self.names) == 2 else -1
        if 0 <= index < len(self.names):
            return index
        some = ", ".join(self.names[:5]) + (", ..." if len(self.names) > 5 else "")
        raise RowError(
            f"label {str(value)[:80]!r} is none of the run's {len(self.names)} labels; use a name ({some}), an index "
            "from 0, or say which it is with --label."
        )

    def present(self, values: Sequence[object]) -> tuple[float, ...]:
        """1 for each label that is listed, by name or index, else 0; a list of as many 0 and 1 as labels is that itself."""
        if len(values) == len(self.names) and all(
            isinstance(value, int | float) and value in (0, 1) for value in values
        ):
            return self.flags(values)
        listed = {self.index(value) for value in values}
        return tuple(float(index in listed) for index in range(len(self.names)))

    def flags(self, values: Sequence[object]) -> tuple[float, ...]:
        """0 or 1 for each label. Raises: RowError."""
        numbers = self.scores(values)
        if any(number not in (0, 1) for number in numbers):
            raise RowError(f"its labels are {', '.join(map(str, values))[:80]}; each must be 0 or 1.")
        return numbers

    def scores(self, values: Sequence[object]) -> tuple[float, ...]:
        """One number for each label. Raises: RowError."""
        if len(values) != len(self.names):
            raise RowError(f"it has {len(values)} numbers for the run's {len(self.names)} labels; give one for each.")
        return tuple(number_of(value, name) for value, name in zip(values, self.names, strict=True))


def _as_index(value: object) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)  # CSV cannot tell numbers from texts
    return value if isinstance(value, int) else -1
