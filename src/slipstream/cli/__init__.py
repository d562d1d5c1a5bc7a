"""The command line: parses, calls the rooms below, prints.

One file per command; torch is imported only by those that compute, inside the function, so that ``--help`` is quick.
"""
