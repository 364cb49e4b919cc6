"""Random small programs, wilder than anyone plans for, which growth leaves alone or is refused."""
