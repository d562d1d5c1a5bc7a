from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata, resources

import pytest

import slipstream


def test_every_public_name_is_there() -> None:
    assert all(getattr(slipstream, name) is not None for name in slipstream.__all__)
    assert set(slipstream.__all__) == set(dir(slipstream))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="unheard_of"):
        slipstream.unheard_of  # noqa: B018


def test_importing_loads_nothing_heavy() -> None:
    code = (
        "import slipstream, sys; print(sorted(m for m in sys.modules if m in {'torch', 'numpy', 'pydantic', 'rich'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_it_is_typed_and_its_version_is_one() -> None:
    assert resources.files("slipstream").joinpath("py.typed").is_file()
    assert metadata.version("slipstream-rec") == slipstream.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", slipstream.__version__)
