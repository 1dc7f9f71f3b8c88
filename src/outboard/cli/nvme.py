"""x."""


def nvme() -> None:
    """Do nvme."""
