"""Honest comparison of thinking models: AlpacaEval 2, Arena-Hard, categories, and thought mode against direct mode.

A run goes `answers -> judgments -> scores -> report`, each stage a file in the run's folder (`folder.py`), each resumed
from what is already there. The words, from the outside in:

    bench        instructions, a judging protocol, and how scores are made of verdicts
    instruction  what a model is asked
    answer       the response to it; its thought is not in it (`answer.py`)
    match        one instruction, answered by a model and by its baseline (`match.py`)
    game         one call of a judge about a match; Arena-Hard plays two, with the order swapped
    verdict      what a judgment says, once it could be read
"""
