"""What knows nothing of growth: taking changes back, locks, source lines, data as JSON."""
