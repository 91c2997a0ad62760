"""Judges: language models behind an HTTP endpoint or on this machine, and files of recorded answers."""
