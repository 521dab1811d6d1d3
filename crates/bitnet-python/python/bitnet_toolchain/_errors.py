"""The exception of the package."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional


class BitnetError(Exception):
    """What a function could not do.

    Attributes:
        code: a stable word, for example ``not-ternary`` or ``exists``; ``formats/report.md`` lists them.
        message: what happened and where, one line.
        hint: what to do about it, or ``None``.
    """

    code: str
    message: str
    hint: Optional[str]

    def __init__(self, code: str, message: str, hint: Optional[str] = None) -> None:
        super().__init__(code, message, hint)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.message} [{self.code}]"
        return text if self.hint is None else f"{text}; hint: {self.hint}"
