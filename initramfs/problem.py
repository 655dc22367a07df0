"""What stops a build and is told to a person: the operation, their value, the reason; perhaps a way out."""


class Problem(Exception):
    """A failure of the builder with a message for a person. `hint` is a way out, when we know one."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}\nhint: {hint}" if hint else message)
        self.message = message
        self.hint = hint


def reason(error: BaseException) -> str:
    """The system's words for an error, without its number and path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
