"""Running commands in a guest over a serial line: the host's side of what ``init.sh`` does.

Pure framing, no I/O: a request is a line ``TOKEN COMMAND SIZE`` (the command in base64) and SIZE bytes
of input for it; the guest answers ``begin TOKEN``, the output as it comes, and ``end TOKEN STATUS``. The
token is new for every command, so the late output of one that was given up on is never taken for that
of the next.
"""

import base64
from dataclasses import dataclass, field
from secrets import token_hex

READY = b"outboard ready\n"
"""What a guest says on the line once it takes commands."""


@dataclass(frozen=True, slots=True)
class Command:
    r"""One shell command for a guest.

    >>> command = Command("uname", token="t1")
    >>> command.request
    b't1 dW5hbWU= 0\n'
    >>> command.answer(b"rubbish\nbegin t1\nLinux\n\nend t1 0\n")
    Answer(output='Linux\n', status=0)
    """

    text: str
    input: bytes = b""
    token: str = field(default_factory=lambda: token_hex(8))

    @property
    def request(self) -> bytes:
        """What to send."""
        text = base64.b64encode(self.text.encode()).decode()
        return f"{self.token} {text} {len(self.input)}\n".encode() + self.input

    @property
    def end(self) -> bytes:
        """What the answer's last line starts with."""
        return f"\nend {self.token} ".encode()

    def answer(self, received: bytes) -> "Answer":
        """The answer in ``received``, what came since the request; status None where it has not ended."""
        output = received.partition(f"begin {self.token}\n".encode())[2]
        output, ended, status = output.partition(self.end)
        text = output.decode(errors="replace")
        return Answer(text, int(status.partition(b"\n")[0]) if ended else None)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command printed (both its outputs, mixed), and its exit status once it has one."""

    output: str
    status: int | None
