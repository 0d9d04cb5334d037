"""Real pictures on disk: emoji and icons that twelve design teams drew, with names and keywords that people wrote.

    pip install 'clipvet[drawings]'
    python examples/drawings ARCHIVES --out OUT

ARCHIVES holds the teams' packages; what is missing there is fetched with npm. docs/drawings.md says what OUT holds.

Read in this order:
sets.py      the packages, how they are fetched, what is taken from an archive
concepts.py  what is drawn, and what may be a class
split.py     which half may see what
render.py    untrusted SVG -> picture
views.py     picture -> training picture, name -> caption
folder.py    what is written
measure.py   how well a model knows the tested drawings; a command of its own
"""
