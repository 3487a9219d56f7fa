"""Training thinking LLMs (imported as `thinkserve.training`): today the pocket world and its seed model."""
