"""What became of loading one hostile thing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from latentgen.weights.errors import WeightsError

SLOW = 2.0
"""Seconds that a refusal may take."""


@dataclass
class Tally:
    """Counts of what happened, and the first few cases of what should not have.

    Attributes:
        counts: by name; "refused" is as it should be.
        cases: of a count that should be 0, what was tried and what came of it.
    """

    counts: Counter[str] = field(default_factory=Counter)
    cases: dict[str, list[str]] = field(default_factory=dict)

    def blame(self, what: str, case: str) -> None:
        """Count something that should not have happened."""
        self.counts[what] += 1
        self.cases.setdefault(what, [])
        if len(self.cases[what]) < 5:
            self.cases[what].append(case)

    def refuse(
        self, case: str, load: Callable[[], Any], *, names: str = "", also: tuple[type[Exception], ...] = ()
    ) -> str:
        """Load something that must be refused, with an error that names the file; returns its text.

        Args:
            case: in words.
            load: what loads it.
            names: must stand in the error.
            also: other errors that are as good: a ValueError about an argument, say.
        """
        self.counts["cases"] += 1
        start = time.perf_counter()
        try:
            load()
        except (WeightsError, *also) as error:
            told = str(error)
            if names not in told:
                self.blame("unnamed", f"{case}: {told[:200]}")
        except BaseException as error:
            self.blame("untyped", f"{case}: {type(error).__name__}: {str(error)[:200]}")
            told = ""
        else:
            self.blame("accepted", case)
            told = ""
        self.timed(case, start)
        return told

    def load(self, case: str, load: Callable[[], Any]) -> bool:
        """Load something that may be refused or be without effect, but with no other error; returns whether it was loaded."""
        self.counts["cases"] += 1
        try:
            load()
        except WeightsError:
            self.counts["refused"] += 1
            return False
        except BaseException as error:
            self.blame("untyped", f"{case}: {type(error).__name__}: {str(error)[:200]}")
            return False
        self.counts["loaded"] += 1
        return True

    def timed(self, case: str, start: float) -> None:
        """Note how long a case took that was begun at `start`."""
        took = time.perf_counter() - start
        self.counts["slowest_ms"] = max(self.counts["slowest_ms"], round(took * 1000))
        if took > SLOW:
            self.blame("slow", f"{case}: {took:.1f} s")

    def result(self, *zeros: str) -> dict[str, Any]:
        """Everything counted, with a 0 for what never happened."""
        return {**dict.fromkeys(zeros, 0), **self.counts, "examples": self.cases}
