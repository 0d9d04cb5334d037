"""What UBT and ABL share: finding a shortcut in suspected pairs and unlearning it. In: a `Clip` and pairs under
suspicion. Out: the pairs and tokens that carry the shortcut, and a model without it. Start with `rounds.py`; then
`shortcut.py`, which overfits a model on purpose. Must not import methods.
"""
