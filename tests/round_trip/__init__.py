"""From training to masks in another environment: `python -m tests.round_trip`.

A script, not a pytest test: it trains models on real volumes and builds a virtual environment.
"""
