"""Taking a backdoor out. One file is one cleaner with the verb `clean`. In: a `Clip` and pairs. Out: a cleaned copy.
Start with `par.py`. Must not import another cleaner; what they share starts with an underscore.
"""
