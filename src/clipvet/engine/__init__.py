"""What every method runs on: the one training loop and passes over pictures and captions. In: a `Clip`, `Pairs` and a
loss. Out: a trained copy, or embeddings. Start with `fit.py`: its loop takes each step as in `step.py`, and keeps its
state where `workspace.py` says. Then `embed.py` for embeddings, which `passes.py` reads and keeps batch by batch, and
`losses.py` for the contrastive losses. Must not import scan, unlearning or any method.
"""
