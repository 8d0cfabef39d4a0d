"""LLM engines behind one small interface: requests in; replies with text, finish reason and token counts out."""
