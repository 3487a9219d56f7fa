"""Sampling outputs, through vLLM, a server, or transformers in this process."""
