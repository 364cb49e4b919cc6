"""Processes that die or fail while they save, and what they leave behind."""
