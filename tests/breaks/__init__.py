"""Breaks the library in chosen places, one at a time, to see that a test notices each."""
