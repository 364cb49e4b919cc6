"""Processes that die or fail while they save, and the files that they leave behind."""
