"""Which pairs are poisoned? One file is one filter with the verb `score`. In: a `Clip` and pairs. Out: one number a
pair, higher is more suspect. Start with `cosine.py`. Must not import another filter; what they share starts with an
underscore.
"""
