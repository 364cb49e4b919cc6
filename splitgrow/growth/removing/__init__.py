"""The change of a model from which layers are taken out: in place and in replay."""
