"""Writes the pages of docs/ that are made from something else: ``python -m pages``; ``--pictures`` draws too."""
