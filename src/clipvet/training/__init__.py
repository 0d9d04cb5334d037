"""How a model is trained on pairs that nobody has checked. One file is one method with the verb `train`. In: a fresh
`Clip` and dirty pairs. Out: a trained model. Start with `plain.py`, then `safeclip.py`. Must not import another
training; what they share starts with an underscore.
"""
