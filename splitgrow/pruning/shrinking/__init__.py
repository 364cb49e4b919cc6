"""From a request to a model that is narrower: which units go, and all that goes along."""
