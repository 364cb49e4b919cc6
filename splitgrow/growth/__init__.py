"""From a request to a model that is wider or deeper: plans, edits, history, optimizers."""
