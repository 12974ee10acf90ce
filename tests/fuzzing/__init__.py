"""Damaged files for every reader: `python -m tests.fuzzing`; a few also in tests/behaviour/test_damaged_input.py."""
