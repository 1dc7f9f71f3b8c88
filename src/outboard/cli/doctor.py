"""x."""


def doctor() -> None:
    """Do doctor."""
