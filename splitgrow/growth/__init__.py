"""From a request to a wider, deeper or narrower model: plans, edits, history, optimizers."""
