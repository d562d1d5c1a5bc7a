"""Where a figure was measured: machine, versions, commit. Names no host, user or path."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel

INSTRUCTIONS = {
    "AMX bf16": "amx_bf16",
    "AVX-512 bf16": "avx512_bf16",
    "AVX-512": "avx512f",
    "AVX2": "avx2",
    "SVE bf16": "svebf16",
    "NEON bf16": "bf16",
}
"""Instructions that decide how fast products are, best first, and the flag by which Linux names each."""
WITHOUT_BF16 = ("AVX-512", "AVX2")
"""Instructions with which products of bfloat16 numbers are slower than those of float32."""
PACKAGES = ("slipstream-rec", "torch", "numba", "numpy", "polars", "pyarrow")


class Machine(BaseModel):
    """The machine on which something was measured."""

    processor: str
    """Name of the processor's model."""
    cores: int
    """Logical cores this process may run on."""
    memory_gib: float
    """Installed memory, GiB."""
    system: str
    """Operating system and architecture, such as ``Linux x86_64``."""
    instructions: str | None = None
    """The best of ``INSTRUCTIONS`` it has; None where it has none of them or they cannot be read."""
    threads: int | None = None
    """Threads torch computes with; None where torch is not loaded."""
    spin_count: str | None = None
    """GOMP_SPINCOUNT, or OMP_WAIT_POLICY where that decides; None where neither is set."""

    @property
    def chip(self) -> str:
        """Processor and cores in words."""
        kind = f" ({self.instructions})" if self.instructions else ""
        return f"{self.processor}{kind}, {self.cores} core{'s' * (self.cores != 1)}"


def describe_machine() -> Machine:
    """Describe the machine this process runs on."""
    torch = sys.modules.get("torch")
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=round(_memory_bytes() / 2**30, 1),
        system=f"{platform.system()} {platform.machine()}",
        instructions=instructions(),
        threads=torch.get_num_threads() if torch is not None else None,
        spin_count=spin_setting(),
    )


def spin_setting() -> str | None:
    """How long idle OpenMP threads spin: ``GOMP_SPINCOUNT=…`` or ``OMP_WAIT_POLICY=…``, None where libgomp decides."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        if value := os.environ.get(name):
            return f"{name}={value}"
    return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that do the work, by distribution name."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # run from a source tree that is not installed
    return found


def commit(file: Path | None = None) -> str | None:
    """The commit of the source tree this package runs from, ``-dirty`` if tracked files differ; None if installed.

    Kept records may differ: one that was just made anew changes nothing of what the next one measures.

    Args:
        file: Another file, whose tree's commit is told: of a script that runs the installed package.
    """
    file = file or Path(__file__)
    here = file.resolve().parent
    identity = git(here, "rev-parse", "--short=12", "HEAD")
    # A package installed inside some other repository (a virtual environment there) is not that repository's commit.
    if identity is None or not git(here, "ls-files", file.name):
        return None
    code = (":(top)", ":(top,exclude)benchmarks/results")
    return f"{identity}-dirty" if git(here, "status", "--porcelain", "--untracked-files=no", "--", *code) else identity


def git(folder: Path, *arguments: str) -> str | None:
    """What a git command says in a folder, its ends stripped; None where it fails or there is no git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def instructions() -> str | None:
    """The best of ``INSTRUCTIONS`` that this processor has, None if none of them or where they cannot be read."""
    flags = (_cpuinfo("flags") or _cpuinfo("Features") or "").split()
    return next((name for name, flag in INSTRUCTIONS.items() if flag in flags), None)


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(name: str) -> str | None:
    """What Linux says of the first core under a name; None elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None  # not Linux
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0
