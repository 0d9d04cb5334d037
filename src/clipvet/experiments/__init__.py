"""Recipes: every attack against every defense. In: a `Recipe`. Out: a folder of result rows, each with its settings.

Start with `recipe.py`, then `run.py`. `victim.py` is one attacked model, `stages.py` is all that is done with it, and
`keys.py` tells which of that was done before. `presets.py` holds the settings for the embedded world. Must not import
pages or commands.
"""
