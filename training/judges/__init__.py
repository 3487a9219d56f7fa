"""Judges that score samples: reward models, LLMs in pairs or one by one, and Python functions."""
