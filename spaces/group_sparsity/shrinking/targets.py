"""What is to be left of a network: a share of its cost, or milliseconds."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sparsemask.errors import UseError, choose

BY = ("multiply-adds", "parameters", "milliseconds")
_NUMBER = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%|ms)?\s*")


@dataclass(frozen=True)
class Target:
    """A share of a cost, or a number of milliseconds."""

    amount: float
    """Above 0; a share is at most 1."""
    unit: str
    """"share" or "ms"."""
    by: str
    """The cost, one of :data:`BY`."""

    @classmethod
    def parse(cls, text: float | str, by: str = "multiply-adds", what: str = "target") -> Target:
        """Read a target.

        Args:
            text: a share such as 0.5 or "50%", or milliseconds such as "8 ms".
            by: of which cost it is a share.
            what: the argument's name, for errors.

        Raises:
            UseError: neither, or out of range.
        """
        choose(by, BY, "by")
        match = _NUMBER.fullmatch(str(text))
        if match is None:
            raise UseError(f"{what}: {text!r:.40}; expected a share (0.5 or '50%') or milliseconds ('8 ms')")
        amount, unit = float(match[1]), match[2]
        if unit == "ms":
            if not amount > 0:
                raise UseError(f"{what}: {text!r:.40}; expected more than 0 ms")
            return cls(amount, "ms", "milliseconds")
        amount = amount / 100 if unit == "%" else amount
        if not 0 < amount <= 1:
            raise UseError(f"{what}: {text!r:.40}; a share is above 0 and at most 1 (or 100%); milliseconds: '8 ms'")
        return cls(amount, "share", by)

    def __str__(self) -> str:
        return f"{self.amount:g} ms" if self.unit == "ms" else f"{self.amount:.4g} of the {self.by}"
