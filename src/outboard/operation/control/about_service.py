"""What there is, what was counted, and what is logged."""

import logging
from typing import Annotated, Any, Literal

from outboard.operation.control.method import Functions
from outboard.operation.control.shown import SubsystemShown, subsystem_shown
from outboard.operation.service import Served, Service
from outboard.operation.statistics import Statistics, statistics_of

PACKAGE = "outboard"
Level = Annotated[
    Literal["debug", "info", "warning", "error"] | None,
    "debug tells of every command that fails. Without it nothing changes.",
]


def list_subsystems(service: Service) -> list[str]:
    """Tell the names of the subsystems."""
    return sorted(service.subsystems)


def show(served: Served) -> SubsystemShown:
    """Tell what a subsystem is, and what it has: namespaces and controllers."""
    return subsystem_shown(served)


def statistics(service: Service) -> Statistics:
    """Tell what was counted of each controller, queue and namespace; a program takes the differences."""
    return statistics_of(service)


def log_level(service: Service, level: Level = None) -> dict[str, Any]:
    """Say from which level on the log is written; tell which that is."""
    logger = logging.getLogger(PACKAGE)
    if level is not None:
        logger.setLevel(level.upper())
    return {"level": logging.getLevelName(logger.getEffectiveLevel()).lower()}


FUNCTIONS: Functions = {
    "subsystem.list": list_subsystems,
    "subsystem.show": show,
    "statistics.get": statistics,
    "log.level": log_level,
}
