"""x."""


def qemu() -> None:
    """Do qemu."""
