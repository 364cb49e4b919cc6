"""Learning task after task on the command line: runs and their results."""
