"""How a backdoor gets into a model. One file is one attack with the verb `implant`. In: a `Clip`, pairs and a target.
Out: the attacked model, the dirty pairs and the answer key. Start with `poison.py`. Must not import another attack;
what attacks share starts with an underscore.
"""
