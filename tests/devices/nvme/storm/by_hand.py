"""Operations in the background that advance only when a storm says so, so that it can be repeated."""

from outboard.devices.nvme import Subsystem
from outboard.devices.nvme.management.background import Background, Operation


class ByHand(Background):
    """Makes no threads: `advance` makes a step of each operation."""

    def look(self) -> None:
        """Nothing goes on by itself."""

    def advance(self) -> None:
        """Make the next step of each operation, if there may be steps now."""
        for operation in [each for each in self.operations if self._may_work()]:
            if operation in self.operations and not self._halted(operation):
                self._step(operation)

    def _step(self, operation: Operation) -> None:
        step, operation.step = operation.step, None
        if step is not None:
            try:
                step()
            except BaseException as error:
                operation.error = error
        self._advance(operation)


def advance(subsystem: Subsystem) -> bool:
    """Make a step of each operation; False if they have threads of their own."""
    if isinstance(subsystem.background, ByHand):
        subsystem.background.advance()
        return True
    return False
