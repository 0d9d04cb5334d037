"""What every method runs on: the one training loop and passes over pictures and captions. In: a `Clip`, `Pairs` and a
loss. Out: a trained copy, or embeddings. Start with `fit.py`; then `embed.py` for passes without gradients and
`losses.py` for the contrastive losses. Must not import scan, unlearning or any method.
"""
