"""Scores of attention heads. Tensors in, tensors out; nothing here reads files or knows a model's insides."""
