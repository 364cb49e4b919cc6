"""Taking whole layers out: what was inserted, and modules that add nothing."""
