"""A small module as a TransformerLens model: another implementation of the architectures, written by others."""

import copy
import tempfile

from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from sih.checkpoints.training import tokenizer_of_corpus


def hooked(module: PreTrainedModel) -> TransformerBridge:
    """The same weights, unfolded and uncentred. The bridge changes the module that it is given, so it gets a copy."""
    inner = copy.deepcopy(module)
    inner.set_attn_implementation("eager")
    inner.config.architectures = [type(module).__name__]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer_of_corpus())  # never used, but asked for
    with tempfile.TemporaryDirectory() as folder:  # without one, it asks the Hub for a config
        inner.config.save_pretrained(folder)
        return TransformerBridge.boot_transformers(folder, hf_model=inner, tokenizer=tokenizer, device="cpu").eval()
