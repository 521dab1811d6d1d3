"""Arguments from outside, checked before they reach the library."""

from __future__ import annotations

import operator
import os

from ._errors import BitnetError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Optional, Union

    Path = Union[str, "os.PathLike[str]"]
    Tokens = Iterable[int]
    Prompt = Union[str, Iterable[int]]


def path_of(value: Path, name: str) -> str:
    """A path or address as text."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name}: expected a str or a path, found {type(value).__name__}")
    text = os.fsdecode(value)
    if not text:
        raise BitnetError("usage", f"{name}: expected a path, found an empty text")
    if "\0" in text:
        raise BitnetError("usage", f"{name}: expected a path, found a text with a zero byte")
    return encodable(text, name)


def encodable(text: str, name: str) -> str:
    """Refuses half of a surrogate pair, which no file name and no argument of a program can have."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise BitnetError("usage", f"{name}: expected a Unicode text: {error}") from None
    return text


def tokens_of(value: Tokens, name: str = "tokens") -> list[int]:
    """Token ids of any iterable of whole numbers; a numpy array needs no conversion."""
    if isinstance(value, (str, bytes, bytearray, memoryview, dict, set, frozenset)):
        raise TypeError(f"{name}: expected token ids, found {type(value).__name__}")
    ids = []
    for at, item in enumerate(value):
        try:
            token = operator.index(item)
        except TypeError:
            found = type(item).__name__
            raise TypeError(f"{name}: token {at}: expected a whole number, found {found}") from None
        if not 0 <= token < 1 << 32:
            raise BitnetError(
                "usage", f"{name}: token {at}: expected a token id from 0 on, found {token}"
            )
        ids.append(token)
    return ids


def count_of(value: int, name: str, least: int = 0, most: int = (1 << 63) - 1) -> int:
    """A whole number in a range."""
    try:
        number = operator.index(value)
    except TypeError:
        found = type(value).__name__
        raise TypeError(f"{name}: expected a whole number, found {found}") from None
    if not least <= number <= most:
        raise BitnetError(
            "usage", f"{name}: expected a whole number from {least} to {most}, found {number}"
        )
    return number


def optional_count(
    value: Optional[int], name: str, least: int = 0, most: int = (1 << 63) - 1
) -> Optional[int]:
    """As :func:`count_of`, or ``None``."""
    return None if value is None else count_of(value, name, least, most)


def number_of(value: Optional[float], name: str) -> Optional[float]:
    """A number, or ``None``."""
    if value is None:
        return None
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name}: expected a number, found {type(value).__name__}")
    return float(value)


def texts_of(value: Union[None, str, Iterable[str]], name: str) -> list[str]:
    """One text or several."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    texts = list(value)
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{name}: expected a str, found {type(text).__name__}")
    return texts
