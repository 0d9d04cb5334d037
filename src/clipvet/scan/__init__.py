"""Looking for triggers in a model. In: a `Clip`, pictures and class names. Out: a recovered trigger and a loss for
each class, and a verdict with its p-value. Start with `inversion.py`, the search; `forms.py` says what a trigger
may look like, `heads.py` what the model can answer, and `verdicts.py` turns scores into a sentence. Must not import
methods other than triggers.
"""
