import subprocess
import sys

SOURCE = """
from numba import cfunc, njit

@njit(cache=True)
def double(x):
    return 2 * x

def worker():
    return cfunc("int64(int64)", cache=True)(lambda_)

def lambda_(x):
    return double(x)
"""
PROGRAM = """
import sys
import kernels
from slipstream.kernels.compiling import when_compiling

calls = []
with when_compiling(lambda: calls.append(1)):
    if "function" in sys.argv:
        kernels.double(1)
    else:
        kernels.worker()
kernels.double(1.0)  # after the block
print(len(calls))
"""


def test_told_once_and_only_where_something_is_compiled(tmp_path):
    (tmp_path / "kernels.py").write_text(SOURCE, encoding="utf-8")

    def told(what):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, what], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=200
        )
        return done.stdout.split()

    assert [told("function"), told("function")] == [["1"], ["0"]]
    assert [told("worker"), told("worker")] == [["1"], ["0"]]  # C functions, as most kernels are
