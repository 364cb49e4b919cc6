"""Units that do not count, found and taken out of plain layers."""
