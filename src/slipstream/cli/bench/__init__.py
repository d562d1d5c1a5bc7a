"""``slipstream bench NAME``: a command for each benchmark, with the options that it has."""

from slipstream.cli.bench import plain, studies
from slipstream.cli.bench.common import app

__all__ = ["app"]

plain.register(app)
studies.register(app)
