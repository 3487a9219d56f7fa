"""Training thinking LLMs (imported as `thinkserve.training`): Thought Preference Optimization, and the pocket world.

`recipe.py` says what can be asked for, `loop.py` runs the stages of each iteration, and each stage is a module of its
own that reads and writes the files of `folder.py`. The algorithm is that of Wu et al., arXiv 2410.10630.
"""
