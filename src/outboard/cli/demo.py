"""x."""


def demo() -> None:
    """Do demo."""
