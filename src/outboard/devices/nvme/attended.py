"""What a controller is put through from outside, and what is kept of it meanwhile.

Whoever runs it may have it fail or pause (CSTS.CFS and CSTS.PP; NVMe Base 2.0, 3.1.3.6). What SMART counts is
kept when it is shut down, let go of or closed, and every few minutes.
"""

import logging
import time

from outboard.devices.nvme import lba_status, persistent_events, vitals
from outboard.devices.nvme.controller import Controller
from outboard.devices.nvme.in_turn import InTurn
from outboard.devices.nvme.registers import Registers
from outboard.devices.nvme.spec import HardwareError, ShutdownStatus
from outboard.devices.nvme.state import State
from outboard.devices.nvme.status import Status
from outboard.errors import SetupError
from outboard.loop import Timer

log = logging.getLogger(__name__)

TICK, KEEP_EVERY = 10.0, 300.0
"""Seconds after which time is counted, and after which the counters are kept."""


class Attended(InTurn, Registers):
    """The part of `outboard.devices.nvme.Nvme` that somebody attends to."""

    state: State
    controller: Controller
    _running = False
    _gone = False
    _ticker: Timer | None = None
    _pause: Timer | None = None
    _kept_at = 0.0

    def fail(self, reason: str = "failed on purpose") -> None:
        """Have the controller fail for good (CSTS.CFS), until the host resets it; from any thread.

        Nothing is completed any more. ``reason`` is in the telemetry that is kept. Nothing happens if the
        controller is not enabled.
        """
        with self.turn:
            if not self._running:
                return
            self.controller.stop()
            self.fatal = True
            self.state.errors.add_of_nobody(Status.INTERNAL_ERROR)
            self.state.telemetry.capture(self.state, reason)
            persistent_events.failed(self.state, HardwareError.CONTROLLER_FATAL)

    def pause(self, seconds: float) -> None:
        """Have the controller take no command for a while (CSTS.PP), as if firmware were activated.

        From any thread. A reset ends it; nothing happens if there is no client, or nothing is enabled.
        """
        with self.turn:
            if self._gone or not self.controller.enabled:
                return
            self._forget_pause()
            self.processing_paused = True
            self.controller.paused = True
            with self.state.plane.paused():
                self.state.plane.frozen = True
                self.state.plane.place()
            self.call_soon(lambda: self._pause_for(seconds))

    def show_paused(self, paused: bool) -> None:
        """Say that processing is paused, or is not, while other firmware is activated."""
        self.processing_paused = paused

    def _pause_for(self, seconds: float) -> None:
        if self.controller.paused:
            self._pause = self.after(seconds, self._resume)

    def _resume(self) -> None:
        self._forget_pause()
        if self.controller.paused:
            self.processing_paused = False
            self.controller.paused = False
            self.controller.thaw()
            self._schedule()

    def _forget_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _begin_ticks(self) -> None:
        self._keep()
        self._tick()

    def _end_ticks(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        self._keep()

    def _tick(self) -> None:
        """Time goes by: it is counted, and from time to time the counters are kept."""
        vitals.account(self.state)
        lba_status.tell(self.state)
        if time.monotonic() - self._kept_at >= KEEP_EVERY:
            self._keep()
        self._ticker = self.after(TICK, self._tick)

    def _keep(self) -> None:
        """Make the counters durable, and whether to be killed now is to lose power unexpectedly."""
        self._kept_at = time.monotonic()
        vitals.account(self.state)
        self.state.subsystem.keep_placement()
        self.state.subsystem.uncorrectable.keep_all()
        running = self._running and not self._gone and self.shutdown_status != ShutdownStatus.COMPLETE
        try:
            self.state.health.keep(running=running, errors=self.state.errors.count)
        except SetupError:
            log.exception("the counters of SMART are not kept")

    def _schedule(self) -> None:
        """Have the commands looked at that came meanwhile."""
        raise NotImplementedError
