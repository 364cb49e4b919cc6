"""From a request to a model that is wider, deeper or narrower: plans, edits, history, optimizers."""
