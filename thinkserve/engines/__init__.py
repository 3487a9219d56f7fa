"""What generates: vLLM, a transformers server of ours, or a remote OpenAI-compatible server.

Each local engine is a process of its own that listens on a private Unix socket; `engine.py` is the protocol that
the gateway sees.
"""
