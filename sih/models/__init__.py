"""A checkpoint in memory: loading it, its tokenizer, the device it fits on, and watching its attention."""
