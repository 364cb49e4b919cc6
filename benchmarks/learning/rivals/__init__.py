"""Claim: growth while training beside gromo, on networks that gromo's own containers make."""
