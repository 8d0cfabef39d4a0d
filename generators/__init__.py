"""Prompts in, documents out: the stages that write synthetic corpora with an LLM."""
