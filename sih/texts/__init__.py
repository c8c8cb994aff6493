"""What models read: texts with relations, long texts, few-shot prompts, and the data files they are made from."""
