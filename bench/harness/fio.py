"""The bound of a file: fio with io_uring on the same file, without us."""

import json
import shutil
import subprocess
from pathlib import Path

from harness.cores import DEVICE_CORE, run_on

PATIENCE = 60


def available() -> bool:
    """Whether fio is installed, and may use io_uring."""
    if shutil.which("fio") is None:
        return False
    command = ["fio", "--name=probe", "--ioengine=io_uring", "--rw=read", "--size=4k", "--filename=/dev/zero"]
    try:
        return subprocess.run(command, capture_output=True, timeout=PATIENCE).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def fio_iops(file: Path, *, rw: str, bs: int, qd: int, seconds: float, warm_up: float) -> float:
    """Commands a second, on one processor, through the page cache."""
    command = [
        "fio",
        "--name=bound",
        f"--filename={file}",
        f"--size={file.stat().st_size}",
        "--ioengine=io_uring",
        "--registerfiles=1",
        "--invalidate=0",
        "--norandommap",
        "--thread",
        f"--rw={rw}",
        f"--bs={bs}",
        f"--iodepth={qd}",
        "--time_based",
        f"--runtime={round(seconds * 1000)}ms",
        f"--ramp_time={round(warm_up * 1000)}ms",
        "--output-format=json",
    ]
    answer = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds + PATIENCE,
        check=True,
        preexec_fn=lambda: run_on(DEVICE_CORE),
    )
    job = json.loads(answer.stdout)["jobs"][0]
    return float(job["write" if "write" in rw else "read"]["iops"])
