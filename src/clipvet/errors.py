"""The errors that users read: wrong input, and input that a method cannot work on."""


def shown(text: str) -> str:
    """The text with control characters and line breaks written as codes. Names in a hostile file may hold them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class UserError(Exception):
    """Bad input. The message is one sentence that names the file or option and the fix. clipvet exits with code 2."""

    def __init__(self, message: str):
        super().__init__(shown(message))


class Unsupported(UserError):
    """Good input that this method cannot work on, such as a quantised model. clipvet exits with code 3."""
