"""The errors that a user is meant to read."""


class UserError(Exception):
    """Bad input: one sentence that names the file or option and the way out. The command line exits with 2."""


class Unsupported(UserError):
    """Sound input that this method cannot work on, a quantised model say. The command line exits with 3."""
