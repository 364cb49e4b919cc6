"""From a model to its channel graph: what can grow, what must grow along, and why not."""
