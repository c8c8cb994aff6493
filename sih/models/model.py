"""A checkpoint in memory: hidden states, logits, what heads put out, and their OV circuits.

Letters: B texts, T positions, L layers, H heads, D d_model, K d_head, V vocabulary, U distinct tokens.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import PreTrainedModel

from sih.errors import CheckpointError
from sih.models.layer import Layer
from sih.models.layouts import layers_of
from sih.models.observing import Observer, observed


@dataclass(frozen=True)
class Model:
    """A checkpoint in memory, ready to measure: no gradients, evaluation mode."""

    module: PreTrainedModel
    device: torch.device

    @cached_property
    def layers(self) -> list[Layer]:
        """Every layer's attention; raises SihError for weights that lie in no known way."""
        return layers_of(self.module)

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def n_heads(self) -> int:
        return self.layers[0].n_heads

    @property
    def d_head(self) -> int:
        return self.layers[0].d_head

    @property
    def window(self) -> float:
        """How many tokens back every layer looks at least; infinite without a sliding window."""
        return getattr(self.module.config.get_text_config(), "sliding_window", None) or float("inf")

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding; Pythia pads it beyond the tokenizer's ids."""
        return len(self.module.get_input_embeddings().weight)

    def hidden(
        self,
        ids_BT: torch.Tensor,
        observe: Observer | None = None,
        gradients: bool = False,
        seen_TT: torch.Tensor | None = None,
        position_T: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Final hidden states (after the last norm), BTD; attention goes to `observe` layer by layer.

        Texts may be padded on the right with any id: attention is causal, so padding changes nothing before it.
        `gradients`: whether to record what a backward pass needs. `seen_TT`: which tokens (columns) each token attends
        to, instead of itself and all before it; `position_T`: where it stands, instead of its index.

        Raises:
            CheckpointError: hidden states that are not finite, as those of broken weights are.
        """
        placed: dict[str, torch.Tensor] = {}
        if seen_TT is not None and position_T is not None:
            # What is added to attention before the softmax, which every implementation takes.
            hidden_TT = torch.zeros(seen_TT.shape).masked_fill(~seen_TT, torch.finfo(self.module.dtype).min)
            mask_BTT = hidden_TT.to(self.device, self.module.dtype).expand(len(ids_BT), 1, -1, -1)
            placed = {"attention_mask": mask_BTT, "position_ids": position_T.to(self.device)[None]}
        with torch.inference_mode(not gradients), observed(self.module, self.layers, observe):
            hidden_BTD = self.module.base_model(ids_BT.to(self.device), use_cache=False, **placed).last_hidden_state
        if not torch.isfinite(hidden_BTD).all():
            raise CheckpointError("hidden states are NaN or infinite")
        return hidden_BTD

    def unembed(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits over the vocabulary, float32, as the model itself gives them: (..., D) -> (..., V)."""
        with torch.inference_mode(hidden.is_inference()):
            logits = self.module.get_output_embeddings()(hidden).float()
            if self._logit_scale != 1:
                logits = logits * self._logit_scale
            cap = getattr(self.module.config, "final_logit_softcapping", None)
            return logits if cap is None else cap * torch.tanh(logits / cap)

    @property
    def _logit_scale(self) -> float:
        config = self.module.config
        return getattr(config, "logit_scale", None) or 1 / getattr(config, "logits_scaling", 1)

    @torch.inference_mode()
    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """What tokens bring into the residual stream, whatever their position, float32: (...) -> (..., D)."""
        scale = getattr(self.module.config, "embedding_multiplier", 1)
        return self.module.get_input_embeddings()(ids.to(self.device)).float() * scale

    @torch.inference_mode()
    def ov_factors(self, layer: int, ids_U: torch.Tensor, gain: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """The two sides of the OV circuit over the given tokens, for all heads of a layer, float32.

        `values_HUK @ targets_HUK.mT` is ov_logits_HUU: row u the logits x_u W_V^h W_O^h W_U on the given
        tokens, with x_u the raw input embedding; no layer norm and no bias [Ren §3].

        Where a norm stands between W_O and the stream, its gain belongs to the circuit, x_u W_V^h W_O^h diag(gain)
        W_U: see `circuit`. Its other factor, one number for all heads at a position, is left out like the other
        norms'. Without `gain`, the gain is left out as well.
        """
        at, ids_U = self.layers[layer], ids_U.to(self.device)
        unembedding_UD = self.module.get_output_embeddings().weight[ids_U].float() * (self._logit_scale * at.scale)
        if gain and at.gain_D is not None:
            unembedding_UD = unembedding_UD * at.gain_D
        values_HUK = at.by_head(self.embed(ids_U) @ at.v_GKD.float().mT)
        return values_HUK, unembedding_UD @ at.o_HDK

    @property
    def circuit(self) -> str:
        """The OV circuit that scores read: with the gain of the norm after attention where there is one."""
        return "W_V W_O diag(gain) W_U" if self.layers[0].after is not None else "W_V W_O W_U"
