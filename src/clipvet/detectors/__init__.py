"""Does this picture carry a trigger? One file is one detector with the verb `detect`, for a model in use. In: a
`Clip`, pictures and class names. Out: one number a picture, higher is more suspect. Start with `strip.py`. Must not
import another detector; what they share starts with an underscore.
"""
