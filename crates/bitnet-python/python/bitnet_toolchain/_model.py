"""A loaded model."""

from __future__ import annotations

from . import _native
from ._arguments import count_of, number_of, optional_count, path_of, texts_of, tokens_of
from ._errors import BitnetError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Any, Literal, Optional, Union, overload

    import numpy as np
    import numpy.typing as npt

    from ._arguments import Path, Prompt, Tokens
else:

    def overload(function):
        return function


class Model:
    """A model that predicts tokens, loaded into memory.

    Args:
        path: checkpoint directory, ``.safetensors``, index or ``.gguf`` file, ``hf://OWNER/NAME``, ...
        threads: threads that compute; default: all available cores. Never changes a result.
        kernel: name of a kernel, for example ``scalar``; default: the fastest. Never changes a result.
        kv_type: ``f32``, ``f16`` or ``q8``, the type of the KV cache.
        layout: byte layout of I2_S tensors.
        repack: copy a ``packed`` model to memory, repacked for the kernel.
        ternary_trained: float weights are master weights of a ternary-trained model.

    Threads may share a model: steps of their texts take turns. A model cannot be used in a forked process; there every
    method raises :class:`BitnetError`. ``close()`` frees the memory; a ``with`` statement does the same.
    """

    def __init__(
        self,
        path: Path,
        threads: Optional[int] = None,
        kernel: Optional[str] = None,
        *,
        kv_type: Optional[str] = None,
        layout: Optional[str] = None,
        repack: bool = False,
        ternary_trained: bool = False,
    ) -> None:
        self._path = path_of(path, "path")
        self._native = _native.Model(
            self._path,
            optional_count(threads, "threads", 1, 1024) or 0,
            kernel,
            kv_type,
            layout,
            bool(repack),
            bool(ternary_trained),
        )

    @property
    def path(self) -> str:
        """The path as given."""
        return self._path

    @property
    def kernel(self) -> str:
        """Name of the kernel that computes."""
        return self._native.kernel

    @property
    def threads(self) -> int:
        """Threads that compute."""
        return self._native.threads

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary: the last axis of :meth:`logits`."""
        return self._native.vocab_size

    @property
    def context_length(self) -> int:
        """Most tokens of a text."""
        return self._native.context_length

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._native.closed

    def close(self) -> None:
        """Free the memory, when the last generation has ended."""
        self._native.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Model({self._path!r})"

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with the special tokens that the tokenizer adds (usually the first one)."""
        if not isinstance(text, str):
            raise TypeError(f"text: expected a str, found {type(text).__name__}")
        return self._native.tokenize(_unicode(text), bool(add_special_tokens))

    def detokenize(self, tokens: Tokens, *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; special tokens give no text, unless ``skip_special_tokens`` is false."""
        return self._native.detokenize(tokens_of(tokens), bool(skip_special_tokens))

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Optional[Sequence[Mapping[str, Any]]] = None,
        **variables: Any,
    ) -> str:
        """The prompt of a conversation, as the chat template of the model writes it.

        ``messages`` are objects with ``role`` and ``content``. Further keywords are variables of the template, for
        example ``enable_thinking=False``. Encode the prompt without special tokens: the template has written them.
        """
        import json

        if isinstance(messages, (str, bytes, dict)):
            raise TypeError(f"messages: expected a list of objects, found {type(messages).__name__}")
        listed = [dict(message) for message in messages]
        for at, message in enumerate(listed):
            if not isinstance(message.get("role"), str):
                raise BitnetError("usage", f"messages: message {at} has no text `role`")
        try:
            texts = [
                json.dumps(value, allow_nan=False)
                for value in (listed, None if tools is None else list(tools), variables)
            ]
        except ValueError as error:
            raise BitnetError("usage", f"messages: {error}") from None
        return self._native.apply_chat_template(
            texts[0], None if tools is None else texts[1], texts[2], bool(add_generation_prompt)
        )

    def logits(self, prompt: Prompt, *, add_special_tokens: bool = True) -> npt.NDArray[np.float32]:
        """Logits of every token: float32 of shape ``(tokens, vocab_size)``.

        Row ``i`` predicts token ``i + 1``. The bits are those of ``bitnet-run logits``, for every kernel and number of
        threads. ``prompt`` is token ids or a text.
        """
        return self._native.logits(self._ids(prompt, add_special_tokens))

    @overload
    def generate(
        self,
        prompt: Prompt,
        max_new_tokens: int = ...,
        temperature: Optional[float] = ...,
        top_k: Optional[int] = ...,
        top_p: Optional[float] = ...,
        min_p: Optional[float] = ...,
        seed: Optional[int] = ...,
        stop: Union[None, str, Iterable[str]] = ...,
        stream: Literal[False] = ...,
        *,
        ctx: Optional[int] = ...,
        ignore_eos: bool = ...,
        add_special_tokens: bool = ...,
    ) -> str: ...
    @overload
    def generate(
        self,
        prompt: Prompt,
        max_new_tokens: int = ...,
        temperature: Optional[float] = ...,
        top_k: Optional[int] = ...,
        top_p: Optional[float] = ...,
        min_p: Optional[float] = ...,
        seed: Optional[int] = ...,
        stop: Union[None, str, Iterable[str]] = ...,
        *,
        stream: Literal[True],
        ctx: Optional[int] = ...,
        ignore_eos: bool = ...,
        add_special_tokens: bool = ...,
    ) -> Iterator[str]: ...
    @overload
    def generate(
        self,
        prompt: Prompt,
        max_new_tokens: int = ...,
        temperature: Optional[float] = ...,
        top_k: Optional[int] = ...,
        top_p: Optional[float] = ...,
        min_p: Optional[float] = ...,
        seed: Optional[int] = ...,
        stop: Union[None, str, Iterable[str]] = ...,
        stream: bool = ...,
        *,
        ctx: Optional[int] = ...,
        ignore_eos: bool = ...,
        add_special_tokens: bool = ...,
    ) -> Union[str, Iterator[str]]: ...
    def generate(
        self,
        prompt: Prompt,
        max_new_tokens: int = 128,
        temperature: Optional[float] = None,
        top_k: Optional[int] = None,
        top_p: Optional[float] = None,
        min_p: Optional[float] = None,
        seed: Optional[int] = None,
        stop: Union[None, str, Iterable[str]] = None,
        stream: bool = False,
        *,
        ctx: Optional[int] = None,
        ignore_eos: bool = False,
        add_special_tokens: bool = True,
    ) -> Union[str, Iterator[str]]:
        """Continue a text or token ids. Returns the new text; with ``stream=True`` an iterator over its pieces.

        Without a sampling keyword the most likely token is taken. ``temperature=0`` does the same; other values sample,
        with the defaults of ``bitnet-run`` for what is not given. A seed gives the same text on every machine. The text
        ends at a stop token of the model, in front of a ``stop`` text, or after ``max_new_tokens``. Pass
        ``add_special_tokens=False`` for a text of :meth:`apply_chat_template`.

        Ctrl-C ends the generation between two tokens. Leaving a stream early ends it, too.
        """
        pieces = self._start(
            prompt,
            max_new_tokens,
            temperature,
            top_k,
            top_p,
            min_p,
            seed,
            texts_of(stop, "stop"),
            ctx,
            ignore_eos,
            add_special_tokens,
            True,
        )
        if stream:
            return pieces  # type: ignore[return-value]
        return "".join(pieces)  # type: ignore[arg-type]

    def generate_tokens(
        self,
        prompt: Prompt,
        max_new_tokens: int = 128,
        temperature: Optional[float] = None,
        top_k: Optional[int] = None,
        top_p: Optional[float] = None,
        min_p: Optional[float] = None,
        seed: Optional[int] = None,
        *,
        ctx: Optional[int] = None,
        ignore_eos: bool = False,
        add_special_tokens: bool = True,
    ) -> list[int]:
        """As :meth:`generate`, with the new token ids in place of the text. Token ids need no tokenizer."""
        pieces = self._start(
            prompt,
            max_new_tokens,
            temperature,
            top_k,
            top_p,
            min_p,
            seed,
            [],
            ctx,
            ignore_eos,
            add_special_tokens,
            False,
        )
        return list(pieces)  # type: ignore[arg-type]

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Union[str, Iterator[str]]:
        """The answer to a conversation: :meth:`generate` behind :meth:`apply_chat_template`."""
        prompt = self.apply_chat_template(messages)
        options.setdefault("add_special_tokens", False)
        answer: Union[str, Iterator[str]] = self.generate(prompt, **options)
        return answer

    def _ids(self, prompt: Prompt, add_special_tokens: bool) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenize(prompt, add_special_tokens=add_special_tokens)
        return tokens_of(prompt, "prompt")

    def _start(
        self,
        prompt: Prompt,
        max_new_tokens: int,
        temperature: Optional[float],
        top_k: Optional[int],
        top_p: Optional[float],
        min_p: Optional[float],
        seed: Optional[int],
        stop: list[str],
        ctx: Optional[int],
        ignore_eos: bool,
        add_special_tokens: bool,
        as_text: bool,
    ) -> _native.Pieces:
        return self._native.generate(
            self._ids(prompt, add_special_tokens),
            count_of(max_new_tokens, "max_new_tokens"),
            number_of(temperature, "temperature"),
            optional_count(top_k, "top_k"),
            number_of(top_p, "top_p"),
            number_of(min_p, "min_p"),
            optional_count(seed, "seed", 0, (1 << 64) - 1),
            [_unicode(text) for text in stop],
            bool(ignore_eos),
            optional_count(ctx, "ctx", 1),
            as_text,
        )


def _unicode(text: str) -> str:
    """Refuses half of a surrogate pair, which is no Unicode text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BitnetError("usage", f"expected a Unicode text: {error}") from None
    return text
