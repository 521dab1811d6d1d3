"""An open checkpoint."""

from __future__ import annotations

from . import _native
from ._arguments import path_of
from ._errors import BitnetError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Optional

    import numpy as np
    import numpy.typing as npt
    import torch

    from ._arguments import Path


class Checkpoint:
    """An open model file. Gives access to its tensors; use :class:`Model` to run it.

    Args:
        path: checkpoint directory, ``.safetensors``, index or ``.gguf`` file, ``hf://OWNER/NAME``, ...
        layout: byte layout of I2_S tensors, if the GGUF file does not determine it.
        ternary_trained: float weights are master weights of a ternary-trained model.

    Names are those of transformers for BitNet 2B4T, whatever the file calls its tensors; the names of the file work,
    too, with ``.weight`` or without.
    """

    def __init__(
        self, path: Path, *, layout: Optional[str] = None, ternary_trained: bool = False
    ) -> None:
        self._path = path_of(path, "path")
        self._native = _native.Checkpoint(self._path, layout, bool(ternary_trained))

    @property
    def path(self) -> str:
        """The path as given."""
        return self._path

    @property
    def family(self) -> str:
        """The family of the network, for example ``bitnet_2b_4t``."""
        return self._native.family

    @property
    def config(self) -> dict[str, Any]:
        """``config.json`` as a dict; of a GGUF file the one that a conversion to a directory writes."""
        import json

        found: dict[str, Any] = json.loads(self._native.config_json())
        return found

    def linears(self) -> list[str]:
        """Names of the modules whose weights are trits, for example ``model.layers.0.mlp.down_proj``."""
        return self._native.linears()

    def names(self) -> list[str]:
        """Names of all tensors of the network, for example ``model.norm.weight``."""
        return self._native.names()

    def ternary(self, name: str) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
        """Trits and scales of a linear.

        Returns int8 of shape ``(rows, cols)`` with the values -1, 0 and 1, and float32 scales: ``(1,)`` for one scale,
        ``(rows, 1)`` for one a row, ``(rows, groups)`` for one a group of ``cols // groups`` columns. The weight is the
        trit times its scale. The arrays are not copied.
        """
        return self._native.ternary(_name(name))

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """The values of a tensor as float32, in its shape. For a linear layer, the values are trits times scales."""
        return self._native.tensor(_name(name))

    def to_torch_state_dict(self, dtype: Optional[torch.dtype] = None) -> dict[str, torch.Tensor]:
        """Every tensor by its name in transformers.

        Linears are trits times scales. Without ``dtype`` tensors are float32. A head that is tied to the embeddings is
        the same tensor under both names. Load the dict with ``network.load_state_dict(state)``, or with the class's
        ``from_pretrained(None, config=config, state_dict=state)``, which also joins the experts of a mixture. PyTorch is
        imported here.
        """
        try:
            import torch
        except ImportError as error:
            raise BitnetError(
                "usage", f"PyTorch cannot be imported: {error}", "pip install torch"
            ) from None
        state = {}
        for name, hf_name in self._native.state_names():
            tensor = torch.from_numpy(self._native.state_tensor(name))
            state[hf_name] = tensor if dtype is None else tensor.to(dtype)
            if name == "model.embed_tokens.weight":
                # replaced below, unless the head is tied
                state["lm_head.weight"] = state[hf_name]
        return state

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._native.closed

    def close(self) -> None:
        """Close the files."""
        self._native.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Checkpoint({self._path!r})"


def _name(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"name: expected a str, found {type(name).__name__}")
    return name
