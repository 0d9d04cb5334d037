"""What a caption names."""


def names_target(caption: str, target: str) -> bool:
    """Whether the caption names the target: as whole words, whatever the case."""
    words = "".join(c if c.isalnum() else " " for c in caption.lower()).split()
    wanted = target.lower().split()
    return any(words[k : k + len(wanted)] == wanted for k in range(len(words)))
