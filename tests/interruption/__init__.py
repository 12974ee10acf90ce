"""Kills commands at random moments and checks that nothing is lost: a script, since it takes minutes."""
