"""`splitgrow continual` and `splitgrow compare`: learning task after task, and what came of it."""
