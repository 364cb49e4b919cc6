"""Learning task after task on the command line: runs, and what came of them."""
