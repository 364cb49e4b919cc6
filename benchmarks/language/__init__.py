"""Claim: a small GPT that grows in every width reaches a large one's loss with less arithmetic."""
