"""``python -m slipstream`` is the command ``slipstream``."""

from slipstream.cli.entry import main

if __name__ == "__main__":
    main()
