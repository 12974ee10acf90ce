"""Kills pretraining at random moments and checks that nothing is lost: a script, since twenty kills take minutes."""
