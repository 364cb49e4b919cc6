"""How time and memory of every operation grow with the size of a model."""
