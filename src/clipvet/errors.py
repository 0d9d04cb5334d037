"""The one error that a user is meant to read."""


class UserError(Exception):
    """Bad input: one sentence that names the file or option and the way out. The command line exits with 2."""
