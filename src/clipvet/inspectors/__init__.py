"""Is this model backdoored? One file is one inspector with the verb `inspect`. In: a `Clip`, pictures and class names.
Out: a `Finding`. Start with `clip_inspector.py`. Must not import another inspector; what they share starts with an
underscore.
"""
