"""The one exception that is meant for the user's eyes."""


class UserError(Exception):
    """Something the user can put right, said in one sentence: what, the value, what to do.

    Raised at the boundary, where the value came in. The command lines print the sentence on stderr
    and exit with 2 (see `cli.run`).
    """
