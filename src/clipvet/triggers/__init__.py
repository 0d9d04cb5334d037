"""What an attacker puts into a picture. One file is one trigger: a frozen dataclass with the verb `stamp`. In:
pictures and a key for each. Out: stamped copies. Start with `patch.py`. Must not import any other room: a
trigger knows no model and no data set.
"""
