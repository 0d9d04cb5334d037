"""Recipes: every attack against every defense, with rows that say how to make them again. In: a `Recipe`. Out: result
rows in a folder. Start with `recipe.py`, then `run.py`; `victim.py` is one attacked model with its stages, and
`presets.py` holds the settings for the embedded world. Must not import pages or commands.
"""
