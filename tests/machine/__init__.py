"""A state machine of a growable model's life, with an oracle that is built without splitgrow."""
