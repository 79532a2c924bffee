"""What a UNet attends to in a call."""

from __future__ import annotations

from typing import NamedTuple, Self

from torch import Tensor


class Condition(NamedTuple):
    """Contexts (B, S, D) of what is asked for (texts, classes, layouts) and, under guidance, of what to stay away from."""

    positive: Tensor
    negative: Tensor | None

    def repeated(self, each: int) -> Self:
        """Each context for so many images, one after the other."""
        return type(self)(*(None if part is None else part.repeat_interleave(each, 0) for part in self))  # type: ignore[arg-type]

    def expanded(self, count: int) -> Self:
        """One context for `count` images; as it is if there are several."""
        return self.repeated(count) if len(self.positive) == 1 else self
