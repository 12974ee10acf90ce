"""Discovery of the trainers in every kind of installation: `python -m tests.installation`.

A script, not a pytest test: it builds virtual environments. What the cheap mode shows and what it does not is said in
`environments.py`.
"""
