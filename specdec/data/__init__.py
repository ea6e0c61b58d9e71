"""Conversations: cloning, parsing, prompts and their splits, packing for training."""
