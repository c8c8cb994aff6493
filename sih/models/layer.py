"""One layer's attention in the field's terms, whatever the class of the model.

Letters: H heads, G heads with values of their own (key-value heads), K d_head, D d_model.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from sih.errors import SihError


@dataclass(frozen=True)
class Layer:
    """Where a layer's attention lies, and its weights by head: views of the model's own, in float32 when asked for.

    attention: the module that calls the attention function.
    output: the module that multiplies by W_O. Its input is z, what the heads put out, (B, T, H * K), head after head.
    v_GKD, v_bias_GK: W_V and its bias; head h reads those of h // (H / G).
    clip: values are clamped to within this, as OLMo-1's can be.
    after: the norm between `output` and the residual stream, as in OLMo-2 and Gemma-2.
    scale: what the sum over heads is multiplied by before it is added to the stream, as in Granite.
    """

    block: Any
    attention: Any
    output: Any
    d_head: int
    v_GKD: torch.Tensor
    v_bias_GK: torch.Tensor | None
    clip: float | None = None
    after: Any = None
    scale: float = 1.0

    @property
    def n_heads(self) -> int:
        return matrix(self.output).shape[1] // self.d_head

    def by_head(self, of_values: torch.Tensor) -> torch.Tensor:
        """(G, ...) -> (H, ...): each head's own, or what its group shares."""
        return of_values.repeat_interleave(self.n_heads // len(of_values), 0)

    @property
    def v_HKD(self) -> torch.Tensor:
        """W_V of every head."""
        return self.by_head(self.v_GKD.float())

    @property
    def v_bias_HK(self) -> torch.Tensor | None:
        """The bias of every head's values, None without one."""
        return None if self.v_bias_GK is None else self.by_head(self.v_bias_GK.float())

    @property
    def o_HDK(self) -> torch.Tensor:
        """W_O of every head, without what comes after the sum over heads (`gain_D`, `scale`)."""
        return matrix(self.output).float().unflatten(1, (-1, self.d_head)).permute(1, 0, 2)

    @property
    def o_bias_D(self) -> torch.Tensor | None:
        """The bias that all heads share, None without one."""
        return None if self.output.bias is None else self.output.bias.float()

    @property
    def gain_D(self) -> torch.Tensor | None:
        """The gain of the norm after attention, None without one.

        A norm by the root mean square turns ones into its gain, whether that is stored as it is or minus 1.
        """
        if self.after is None:
            return None
        weight = matrix(self.output)
        return self.after(torch.ones(len(weight), dtype=weight.dtype, device=weight.device)).float()


def matrix(projection: Any) -> torch.Tensor:
    """The weight of a linear map as (out, in); GPT-2's Conv1D keeps its transpose."""
    return projection.weight.T if isinstance(projection, Conv1D) else projection.weight


def heads_of(outputs_I: torch.Tensor | None, *sizes: int) -> Any:
    """The outputs of a linear map by head, (I, ...) -> (-1, *sizes, ...): a view; None of None.

    Raises:
        SihError: outputs that do not divide into heads of that size.
    """
    if outputs_I is None:
        return None
    try:
        return outputs_I.unflatten(0, (-1, *sizes))
    except RuntimeError:
        raise SihError(f"{len(outputs_I)} outputs do not divide into heads of {' x '.join(map(str, sizes))}") from None
