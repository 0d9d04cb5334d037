"""The errors that a user is meant to read."""


def shown(text: str) -> str:
    """Control characters, which names in a hostile file may hold, by their codes; line breaks too."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class UserError(Exception):
    """Bad input: one sentence that names the file or option and the way out. The command line exits with 2.

    Control characters are shown by their codes.
    """

    def __init__(self, told: str):
        super().__init__(shown(told))


class Unsupported(UserError):
    """Sound input that this method cannot work on, a quantised model say. The command line exits with 3."""
