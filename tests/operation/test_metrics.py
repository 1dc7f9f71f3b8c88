"""Metrics as Prometheus scrapes them: names, labels and types by its conventions, values as counted."""

import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from outboard.client import Client
from outboard.drivers.nvme import NvmeDriver
from outboard.errors import SetupError
from outboard.operation import Running
from tests.operation.conftest import Run, document


@pytest.fixture
def running(run: Run, tmp_path: Path) -> Running:
    return run(document(tmp_path) | {"metrics": {"listen": "127.0.0.1:0"}})


def scraped(running: Running) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{running.metrics_port}/metrics", timeout=60) as answer:
        return {family.name: family for family in text_string_to_metric_families(answer.read().decode())}


def value(families: dict[str, Any], name: str, **labels: str) -> float:
    (found,) = (
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
    return float(found)


def test_what_hosts_do_is_counted(running: Running, tmp_path: Path) -> None:
    place, other = ({"subsystem": "main", "controller": cntlid} for cntlid in "12")
    before = scraped(running)
    assert value(before, "outboard_nvme_connected", **place) == 0
    with Client(tmp_path / "a.sock") as client, NvmeDriver(client) as driver:
        driver.write(1, 0, bytes(4096))
        driver.read(1, 0, 512)
        found = scraped(running)
    assert value(found, "outboard_nvme_commands_total", **place, direction="read") == 1
    assert value(found, "outboard_nvme_bytes_total", **place, direction="write") == 4096
    assert value(found, "outboard_nvme_commands_total", **other, direction="read") == 0
    assert value(found, "outboard_nvme_connected", **place) == 1
    assert value(found, "outboard_nvme_ready", **place) == 1
    assert value(found, "outboard_nvme_queue_entries", **place, queue="1") > 1
    assert value(found, "outboard_nvme_namespace_size_bytes", subsystem="main", nsid="2") == 1 << 30
    assert value(found, "outboard_nvme_namespace_controllers", subsystem="main", nsid="1") == 2
    space = {"subsystem": "main", "nsid": "1"}
    assert value(found, "outboard_nvme_namespace_commands_total", **space, direction="write") == 1
    assert value(found, "outboard_nvme_namespace_bytes_total", **space, direction="read") == 512
    assert value(found, "outboard_nvme_namespace_measured_commands_total", **space) >= 1
    assert value(found, "outboard_nvme_namespace_latency_seconds_total", **space) > 0
    assert value(found, "outboard_nvme_queue_commands_total", **place, queue="1") == 2
    assert value(found, "outboard_nvme_queue_completions_total", **place, queue="1") == 2


def test_names_and_types_follow_the_conventions(running: Running) -> None:
    for name, family in scraped(running).items():
        assert name.startswith("outboard_nvme_")
        assert family.documentation.endswith(".")
        assert family.type in ("counter", "gauge")
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)


def test_a_port_that_is_taken_is_told_and_nothing_stays(running: Running, run: Run, tmp_path: Path) -> None:
    other = document(tmp_path) | {"metrics": {"listen": f"127.0.0.1:{running.metrics_port}"}}
    for controller in other["subsystem"]["main"]["controller"]:
        controller["socket"] += ".other.sock"
    other["control"]["socket"] += ".other.sock"
    with pytest.raises(SetupError, match="metrics: cannot listen on 127"):
        run(other)


@pytest.mark.parametrize("listen", ["nowhere.invalid:9100", "9100", "a..b:9100"])
def test_an_address_that_is_none_is_told(run: Run, tmp_path: Path, listen: str) -> None:
    with pytest.raises(SetupError, match="metrics"):
        run(document(tmp_path) | {"metrics": {"listen": listen}})


def test_without_its_extra_the_program_says_how_to_install_it(tmp_path: Path) -> None:
    command = [
        "nvme",
        "--namespace",
        "ram:1M",
        "--pollers",
        "0",
        "--socket",
        f"{tmp_path}/a",
        "--metrics",
        ":0",
    ]
    blocked = "import sys; sys.modules['prometheus_client'] = None; from outboard.cli import main"
    blocked += "; main(sys.argv[1:])"
    failed = subprocess.run(
        [sys.executable, "-c", blocked, *command], capture_output=True, text=True, timeout=60, check=False
    )
    assert failed.returncode == 1
    assert "metrics need prometheus-client: pip install 'outboard[metrics]'" in failed.stderr
    assert not (tmp_path / "a").exists()


def test_the_package_and_the_service_do_without_it() -> None:
    blocked = "import sys; sys.modules.update(prometheus_client=None, textual=None, cyclopts=None, rich=None)"
    code = f"{blocked}; import outboard, outboard.operation"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
