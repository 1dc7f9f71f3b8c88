"""``python -m fuzz``: has atheris look for inputs that break a target's property, from the corpus on.

    python -m fuzz --seconds 60            every target for a minute, one a processor
    python -m fuzz server --seconds 3600   one of them for an hour
    python -m fuzz server INPUT            one input again, with its traceback
    python -m fuzz --keep                  take what is worth it of what was found into fuzz/corpus

What is found, new inputs and findings (``crash-*``, ``timeout-*``, ``oom-*``), lies in ``.fuzz/TARGET``,
beside the log. Exit status 1 if there was a finding.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from fuzz import TARGETS, target_named

CORPUS = Path(__file__).parent / "corpus"
WORK = Path(__file__).parents[1] / ".fuzz"
LONGEST = 1024
"""Bytes of an input: about forty decisions of a peer, and their details."""
TIME, MEMORY = 20, 2048
"""Seconds and MiB that one input may take before that is a finding."""
FINDINGS = ("crash-*", "timeout-*", "oom-*", "leak-*")


def main() -> int:
    """Run what the command line says; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("target", nargs="?", choices=TARGETS)
    parser.add_argument("input", nargs="?", type=Path, help="run this one input, without atheris")
    parser.add_argument("--seconds", type=int, default=60, help="how long each target runs")
    parser.add_argument("--keep", action="store_true", help="take what was found into fuzz/corpus")
    options = parser.parse_args()
    if options.input is not None:
        target_named(options.target)(options.input.read_bytes())
        print("its property holds")
        return 0
    if find_spec("atheris") is None:
        print("atheris is not installed: it comes with the environment on x86-64 only")
        return 1
    chosen = [options.target] if options.target else list(TARGETS)
    if options.keep:
        return max(keep(name) for name in chosen)
    with ThreadPoolExecutor(os.cpu_count()) as several:
        return max(several.map(lambda name: search(name, options.seconds), chosen))


def inside(name: str, *arguments: str) -> list[str]:
    """The command that fuzzes in a process of its own."""
    return [sys.executable, "-m", "fuzz.inside", name, *arguments]


def environment() -> dict[str, str]:
    """Compiled code is not what is looked at, and machine code cannot be made of instrumented functions."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(["tools/without_numba", ".", "src"])}


def search(name: str, seconds: int) -> int:
    """Fuzz one target for so long, and say in one line what came of it; 1 if there was a finding."""
    folder = WORK / name
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    before, ends = {*findings(folder)}, time.monotonic() + seconds
    executed, features, status, log = 0, 0, 0, folder / "log"
    new: list[Path] = []
    while not new and not status and (left := round(ends - time.monotonic())) > 0:
        status = run_atheris(name, left, log)
        text = log.read_text(errors="replace")
        executed += sum(map(int, re.findall(r"number_of_executed_units: (\d+)", text)))
        features = max([features, *map(int, re.findall(r"\bft: (\d+)", text))])
        new = sorted({*findings(folder)} - before)
        if any(forget_pause(name, path) for path in new):
            status, new = 0, sorted({*findings(folder)} - before)
    says = f"{name}: {executed} inputs, {features} features reached"
    print(f"{says}; {len(new)} findings" if new or status else f"{says}; nothing found", flush=True)
    for path in new:
        print(f"  {path}: see {log}; again: python -m fuzz {name} {path}", flush=True)
    if status and not new:
        print(f"  it ended with status {status}: see {log}", flush=True)
    return int(bool(status or new))


def run_atheris(name: str, seconds: int, log: Path) -> int:
    """One process of atheris, for so long or until it finds something; its exit status."""
    flags = [
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST}",
        f"-timeout={TIME}",
        f"-rss_limit_mb={MEMORY}",
        f"-artifact_prefix={log.parent}/",
        "-print_final_stats=1",
    ]
    command = inside(name, *flags, str(log.parent / "corpus"), str(CORPUS / name))
    with log.open("w") as output:
        return subprocess.run(
            command, env=environment(), stdout=output, stderr=output, check=False
        ).returncode


def forget_pause(name: str, path: Path) -> bool:
    """Whether an input that took too long takes none if it is run again: the machine stood still, then."""
    if not path.name.startswith("timeout-"):
        return False
    command = [sys.executable, "-m", "fuzz", name, str(path)]
    try:
        subprocess.run(command, env=environment(), timeout=TIME, capture_output=True, check=True)
    except subprocess.SubprocessError:
        return False
    path.unlink()
    return True


def findings(folder: Path) -> list[Path]:
    """The findings that lie in a folder."""
    return sorted(path for pattern in FINDINGS for path in folder.glob(pattern))


def keep(name: str) -> int:
    """The smallest set of inputs that reaches what all that were found reach becomes the corpus."""
    folder, merged = CORPUS / name, WORK / name / "merged"
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir(parents=True)
    command = inside(
        name, "-set_cover_merge=1", f"-max_len={LONGEST}", str(merged), str(WORK / name / "corpus")
    )
    status = subprocess.run([*command, str(folder)], env=environment(), check=False).returncode
    if not status and any(merged.iterdir()):
        regressions = {path.name: path.read_bytes() for path in folder.glob("found-*")}
        shutil.rmtree(folder)
        shutil.move(merged, folder)
        for kept, content in regressions.items():
            (folder / kept).write_bytes(content)
    return status


if __name__ == "__main__":
    sys.exit(main())
