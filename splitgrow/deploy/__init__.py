"""From a grown model to a plain one, and to the fused network that is deployed."""
