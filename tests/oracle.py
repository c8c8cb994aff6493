"""Slow, obvious reference code: one text, one triplet, one head, one position at a time, over the whole vocabulary."""

import math
from collections import Counter
from dataclasses import replace

import torch
from transformers import PreTrainedModel


def attentions(module: PreTrainedModel, ids: list[int]) -> list[torch.Tensor]:
    """Per layer, (H, T, T), from transformers' own eager attention."""
    module.set_attn_implementation("eager")
    with torch.no_grad():
        out = module(torch.tensor([ids]), output_attentions=True)
    return [a[0] for a in out.attentions]


def value_weights(module: PreTrainedModel, layer: int, head: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W_V (K, D), its bias (K,) and W_O (D, K) of one head, read class by class."""
    config, kind = module.config, module.config.model_type
    width = config.hidden_size
    d = getattr(config, "head_dim", None) or width // config.num_attention_heads
    of_head = slice(head * d, (head + 1) * d)
    if kind == "gpt_neox":
        attention = module.gpt_neox.layers[layer].attention
        rows = slice(head * 3 * d + 2 * d, head * 3 * d + 3 * d)
        fused = attention.query_key_value
        return fused.weight[rows], fused.bias[rows], attention.dense.weight[:, of_head]
    if kind == "gpt2":
        attention = module.transformer.h[layer].attn
        columns = slice(2 * width + head * d, 2 * width + (head + 1) * d)
        fused = attention.c_attn
        return fused.weight[:, columns].T, fused.bias[columns], attention.c_proj.weight[of_head].T
    attention = module.model.layers[layer].self_attn
    group = head // (config.num_attention_heads // config.num_key_value_heads)
    rows = slice(group * d, (group + 1) * d)
    bias = torch.zeros(d) if attention.v_proj.bias is None else attention.v_proj.bias[rows]
    return attention.v_proj.weight[rows], bias, attention.o_proj.weight[:, of_head]


def embedding(module: PreTrainedModel, token: int) -> torch.Tensor:
    """What a token brings into the stream, (D,); Gemma multiplies it by the root of the width."""
    scale = module.config.hidden_size**0.5 if module.config.model_type.startswith("gemma") else 1.0
    return module.get_input_embeddings().weight[token] * scale


def read_by_attention(module: PreTrainedModel, layer: int, stream: torch.Tensor) -> torch.Tensor:
    kind = module.config.model_type
    if kind == "gpt_neox":
        return module.gpt_neox.layers[layer].input_layernorm(stream)
    if kind == "gpt2":
        return module.transformer.h[layer].ln_1(stream)
    return stream if kind == "olmo2" else module.model.layers[layer].input_layernorm(stream)


def gain(module: PreTrainedModel, layer: int) -> torch.Tensor:
    """Of the norm between W_O and the stream, (D,); ones where there is none."""
    kind = module.config.model_type
    if kind not in ("olmo2", "gemma2"):
        return torch.ones(module.config.hidden_size)
    weight = module.model.layers[layer].post_attention_layernorm.weight
    return weight + 1 if kind == "gemma2" else weight


@torch.no_grad()
def ov_probabilities(module: PreTrainedModel, layer: int, head: int, token: int) -> torch.Tensor:
    """softmax(x W_V W_O W_U) over the whole vocabulary, x the raw embedding of `token` [Ren Eq. 2]."""
    w_v, _, w_o = value_weights(module, layer, head)
    x = embedding(module, token)
    return torch.softmax(module.lm_head.weight @ (gain(module, layer) * (w_o @ (w_v @ x))), dim=0)


@torch.no_grad()
def output_probabilities(module: PreTrainedModel, ids: list[int], layer: int, head: int, j: int) -> torch.Tensor:
    """The same of what the head really puts out at j: its values summed with its attention, through W_O."""
    module.set_attn_implementation("eager")
    out = module(torch.tensor([ids]), output_attentions=True, output_hidden_states=True)
    w_v, b_v, w_o = value_weights(module, layer, head)
    z = torch.zeros(len(b_v))
    for k in range(j + 1):
        x = read_by_attention(module, layer, out.hidden_states[layer][0, k])
        z = z + out.attentions[layer][0, head, j, k] * (w_v @ x + b_v)
    return torch.softmax(module.lm_head.weight @ (gain(module, layer) * (w_o @ z)), dim=0)


def share(probabilities: torch.Tensor, seen: list[int], target: int) -> float | None:
    """q_target / sum q over the distinct tokens seen; None when no q is above 0 [Ren Eq. 3]."""
    distinct = sorted(set(seen))
    mean = sum(float(probabilities[t]) for t in distinct) / len(distinct)
    q = {t: max(0.0, float(probabilities[t]) - mean) for t in distinct}
    total = sum(q.values())
    return q[target] / total if total > 0 else None


def relation_index(module: PreTrainedModel, examples: list, taus: list[float], direction: str, drawn) -> dict:
    """{(source, relation, layer, head): sums} for one direction, summed over examples.

    `drawn(ids, triplet, direction, j)` gives the token ids of the random and the matched null, None where undefined.
    """
    found: dict = {}
    strict = ["strict", *(f"strict_{tau:g}" for tau in taus[1:])]
    for example in examples:
        ids = list(example.token_ids)
        patterns = attentions(module, ids)
        for triplet in example.triplets:
            s, o = triplet.subject, triplet.object
            if direction == "reverse":
                s, o = o, s
            for layer, pattern_HTT in enumerate(patterns):
                for head in range(len(pattern_HTT)):
                    at = found.setdefault((example.source, triplet.relation, layer, head), Counter())
                    for j in range(max(s, o), len(ids)):
                        at["opportunities" if j != s else "self_opportunities"] += 1
                        row = pattern_HTT[head, j, : j + 1]
                        values = [float(a) for a in row]
                        open_gates = []
                        if values.index(max(values)) == s:
                            open_gates.append("ren")
                            next_most = max((values[k] for k in range(j + 1) if k != s), default=0.0)
                            if j != s:
                                open_gates.append("argmax")
                                sharp = (values[s] > tau * next_most for tau in taus)
                                open_gates += [gate for gate, yes in zip(strict, sharp, strict=True) if yes]
                        own = values[1:] if example.begins else values
                        if j != s and own.index(max(own)) == s - example.begins:
                            open_gates.append("own")
                        if not open_gates:
                            continue
                        for gate in open_gates:
                            at[f"{gate}_events"] += 1
                        random, matched = drawn(ids, triplet, direction, j)
                        tenth = 10 + example.begins
                        fixed = ids[tenth] if j >= tenth and ids[tenth] != ids[o] else None
                        for prefix, p in (
                            ("", ov_probabilities(module, layer, head, ids[j])),
                            ("attended_", ov_probabilities(module, layer, head, ids[s])),
                            ("contextual_", output_probabilities(module, ids, layer, head, j)),
                        ):
                            a = share(p, ids[: j + 1], ids[o])
                            if a is None:
                                continue
                            for gate in open_gates:
                                at[f"{prefix}{gate}_scored"] += 1
                                at[f"{prefix}{gate}_sum"] += a
                            for null, token in (("fixed", fixed), ("random", random), ("matched", matched)):
                                if token is not None and "argmax" in open_gates:
                                    at[f"{prefix}null_{null}_scored"] += 1
                                    at[f"{prefix}null_{null}_sum"] += share(p, ids[: j + 1], token)
                                    at[f"{prefix}null_{null}_object_sum"] += a
    return found


def best_heads(module: PreTrainedModel, examples: list, direction: str) -> list[tuple[int, int] | None]:
    """For each triplet the (layer, head) with the largest mean share over its events; None where none is above 0."""
    best = []
    for example in examples:
        for triplet in example.triplets:
            alone = replace(example, triplets=(triplet,))
            sums = relation_index(module, [alone], [2.2], direction, lambda *_: (None, None))
            means = {
                (layer, head): at["argmax_sum"] / at["argmax_scored"]
                for (_, _, layer, head), at in sums.items()
                if at["argmax_scored"] and at["argmax_sum"] > 0
            }
            best.append(max(means, key=lambda key: means[key]) if means else None)
    return best


def prefix_matching(pattern_TT: torch.Tensor, half: int) -> float:
    total = 0.0
    for i in range(half, 2 * half - 1):
        earlier = i - half
        total += float(pattern_TT[i, earlier + 1])
    return total / (half - 1)


def duplicate_token(pattern_TT: torch.Tensor, half: int) -> float:
    return sum(float(pattern_TT[i, i - half]) for i in range(half, 2 * half)) / half


def first_token(pattern_TT: torch.Tensor) -> float:
    return sum(float(pattern_TT[i, 0]) for i in range(1, len(pattern_TT))) / (len(pattern_TT) - 1)


def previous_token(pattern_TT: torch.Tensor) -> float:
    length = len(pattern_TT)
    return sum(float(pattern_TT[i, i - 1]) for i in range(1, length)) / (length - 1)


def copying(module: PreTrainedModel, layer: int, head: int, ids: list[int]) -> float:
    """Mean over tokens of the share of the raised probability, among `ids`, that falls on the token itself."""
    shares = [share(ov_probabilities(module, layer, head, t), ids, t) for t in ids]
    defined = [s for s in shares if s is not None]
    return sum(defined) / len(defined)


def losses(module: PreTrainedModel, ids: list[int]) -> list[float]:
    """-log p(next token) at every position but the last."""
    module.set_attn_implementation("eager")
    with torch.no_grad():
        logits = module(torch.tensor([ids])).logits[0]
    return [-float(torch.log_softmax(logits[t], 0)[ids[t + 1]]) for t in range(len(ids) - 1)]


def prompt_scores(module: PreTrainedModel, ids: list[int], labels: list[int], gold: int) -> dict[str, float]:
    """The answer to one prompt by itself; `gold` is an index into the label tokens."""
    module.set_attn_implementation("eager")
    with torch.no_grad():
        logits = module(torch.tensor([ids])).logits[0, -1]
    best = int(logits.argmax())
    rest = [math.exp(float(logits[t])) for t in labels if t != labels[gold]]
    return {
        "format_accuracy": float(best in labels),
        "accuracy": float(best == labels[gold]),
        "constrained_accuracy": float(max(labels, key=lambda t: float(logits[t])) == labels[gold]),
        "label_margin": float(logits[labels[gold]]) - math.log(sum(rest)),
    }
