"""Breaks the library in chosen places, one at a time, to check that a test notices each."""
