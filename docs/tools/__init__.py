"""What makes the generated pages (`generate.py`) and the site (`hooks.py`). Readers of the docs need nothing of it."""
