"""What a model is worth and how far an attack gets. One file is one measure with the verb `measure`. In: a `Clip`, a
task and the answer key. Out: numbers with their sample size and interval. Start with `zeroshot.py`, then
`attack_success.py`. Must not import another measure; what they share starts with an underscore.
"""
