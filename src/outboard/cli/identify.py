"""x."""


def identify() -> None:
    """Do identify."""
