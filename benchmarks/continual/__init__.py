"""Claim: tasks are learned one after the other without forgetting, in little space and time."""
