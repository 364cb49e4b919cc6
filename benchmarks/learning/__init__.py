"""Claim: to grow towards a size while training, against that size from the start, at equal cost."""
