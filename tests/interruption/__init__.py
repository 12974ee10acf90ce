"""Kills commands at random moments and checks that nothing is lost: a script, since so many kills take minutes."""
