"""thinkserve: serve, evaluate and train thinking LLMs.

Nothing heavy is imported here: the core is `thinkserve.thoughts`, the server `thinkserve.gateway`.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
