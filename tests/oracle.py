"""Slow, obvious reference code: one text, one triplet, one head, one position at a time, over the whole vocabulary."""

import math

import torch
from transformers import GPTNeoXForCausalLM


def attentions(module: GPTNeoXForCausalLM, ids: list[int]) -> list[torch.Tensor]:
    """Per layer, (H, T, T), from transformers' own eager attention."""
    module.set_attn_implementation("eager")
    with torch.no_grad():
        out = module(torch.tensor([ids]), output_attentions=True)
    return [a[0] for a in out.attentions]


def ov_probabilities(module: GPTNeoXForCausalLM, layer: int, head: int, token: int) -> torch.Tensor:
    """softmax(x W_V W_O W_U) over the whole vocabulary, x the raw embedding of `token` [Ren Eq. 2]."""
    attention = module.gpt_neox.layers[layer].attention
    d = module.config.hidden_size // module.config.num_attention_heads
    start = head * 3 * d
    w_v = attention.query_key_value.weight[start + 2 * d : start + 3 * d]
    w_o = attention.dense.weight[:, head * d : (head + 1) * d]
    x = module.gpt_neox.embed_in.weight[token]
    return torch.softmax(module.lm_head.weight @ (w_o @ (w_v @ x)), dim=0)


def share(probabilities: torch.Tensor, seen: list[int], target: int) -> float | None:
    """q_target / sum q over the distinct tokens seen; None when no q is above 0 [Ren Eq. 3]."""
    distinct = sorted(set(seen))
    mean = sum(float(probabilities[t]) for t in distinct) / len(distinct)
    q = {t: max(0.0, float(probabilities[t]) - mean) for t in distinct}
    total = sum(q.values())
    return q[target] / total if total > 0 else None


def relation_index(module: GPTNeoXForCausalLM, examples: list, tau: float, direction: str) -> dict:
    """{(source, relation, layer, head): sums} for one direction, summed over examples."""
    found: dict = {}
    for example in examples:
        ids = list(example.token_ids)
        patterns = attentions(module, ids)
        for triplet in example.triplets:
            s, o = triplet.subject, triplet.object
            if direction == "reverse":
                s, o = o, s
            for layer, pattern_HTT in enumerate(patterns):
                for head in range(len(pattern_HTT)):
                    key = (example.source, triplet.relation, layer, head)
                    at = found.setdefault(
                        key,
                        {
                            "opportunities": 0,
                            "argmax_events": 0,
                            "argmax_scored": 0,
                            "argmax_sum": 0.0,
                            "strict_events": 0,
                            "strict_scored": 0,
                            "strict_sum": 0.0,
                            "null_fixed_scored": 0,
                            "null_fixed_sum": 0.0,
                        },
                    )
                    for j in range(max(s, o), len(ids)):
                        at["opportunities"] += 1
                        row = pattern_HTT[head, j, : j + 1]
                        values = [float(a) for a in row]
                        if values.index(max(values)) != s:
                            continue
                        others = [values[k] for k in range(j + 1) if k != s]
                        strict = float(row[s]) > tau * max(others, default=-math.inf)
                        at["argmax_events"] += 1
                        at["strict_events"] += strict
                        p = ov_probabilities(module, layer, head, ids[j])
                        a = share(p, ids[: j + 1], ids[o])
                        if a is None:
                            continue
                        at["argmax_scored"] += 1
                        at["argmax_sum"] += a
                        if strict:
                            at["strict_scored"] += 1
                            at["strict_sum"] += a
                        if j >= 10 and ids[10] != ids[o]:
                            at["null_fixed_scored"] += 1
                            at["null_fixed_sum"] += share(p, ids[: j + 1], ids[10])
    return found


def prefix_matching(pattern_TT: torch.Tensor, half: int) -> float:
    total = 0.0
    for i in range(half, 2 * half - 1):
        earlier = i - half
        total += float(pattern_TT[i, earlier + 1])
    return total / (half - 1)


def previous_token(pattern_TT: torch.Tensor) -> float:
    length = len(pattern_TT)
    return sum(float(pattern_TT[i, i - 1]) for i in range(1, length)) / (length - 1)


def copying(module: GPTNeoXForCausalLM, layer: int, head: int, ids: list[int]) -> float:
    """Mean over tokens of the share of the raised probability, among `ids`, that falls on the token itself."""
    shares = [share(ov_probabilities(module, layer, head, t), ids, t) for t in ids]
    defined = [s for s in shares if s is not None]
    return sum(defined) / len(defined)


def losses(module: GPTNeoXForCausalLM, ids: list[int]) -> list[float]:
    """-log p(next token) at every position but the last."""
    module.set_attn_implementation("eager")
    with torch.no_grad():
        logits = module(torch.tensor([ids])).logits[0]
    return [-float(torch.log_softmax(logits[t], 0)[ids[t + 1]]) for t in range(len(ids) - 1)]


def prompt_scores(module: GPTNeoXForCausalLM, prompt) -> dict[str, float]:
    module.set_attn_implementation("eager")
    with torch.no_grad():
        logits = module(torch.tensor([list(prompt.token_ids)])).logits[0, -1]
    best = max(range(len(logits)), key=lambda t: float(logits[t]))
    labels = list(prompt.label_token_ids)
    gold = labels[prompt.gold]
    rest = [math.exp(float(logits[t])) for t in labels if t != gold]
    return {
        "format_accuracy": float(best in labels),
        "accuracy": float(best == gold),
        "constrained_accuracy": float(max(labels, key=lambda t: float(logits[t])) == gold),
        "label_margin": float(logits[gold]) - math.log(sum(rest)),
    }
