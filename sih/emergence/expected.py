"""When induction is predicted to appear, by others."""

import math

SOURCE = "arXiv 2511.16893"


def induction_tokens(tokens_per_step: float) -> float:
    """Training tokens at which induction heads appear, whatever the model's size: N = 10^5.7 sqrt(B C) [2511.16893].

    B sequences of C tokens make a step, so B C is the tokens of a step: 7.3e8 tokens for Pythia, its step 346. The
    prediction is the paper's; nothing here tests it.
    """
    return 10**5.7 * math.sqrt(tokens_per_step)
