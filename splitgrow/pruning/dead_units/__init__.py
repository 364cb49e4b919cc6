"""Dead units of plain networks: found by weights and constants, and removed."""
