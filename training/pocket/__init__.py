"""The pocket world and the model that lives in it: small enough to train from nothing on a CPU in minutes.

`world.py` holds the instructions and the gold answers (`easy.py` and `hard.py`: its categories), `judge.py` scores a
response by rule, `habits.py` writes the thoughts that the seed model learns from, `tokenizer.py` and `checkpoint.py`
put the model into the Hugging Face layout, `muon.py` optimizes it, `seed.py` trains it, `evaluation.py` measures it,
`card.py` writes its model card.
"""
