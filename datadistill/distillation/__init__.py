"""The outer loop and what it keeps. Read `loop.py` first."""
