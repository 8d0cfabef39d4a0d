"""Documents in, a model out: tokenizer, mixture, packing, pretraining, tuning, export.

The step, its models and its loader run without Ray installed; only the launcher and its watcher import it.
"""
