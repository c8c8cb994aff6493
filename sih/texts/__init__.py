"""What models read: texts with relations, long texts, few-shot episodes, and the data files they are made from."""
