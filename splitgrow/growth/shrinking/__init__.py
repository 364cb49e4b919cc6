"""The change of layers that lose channels: their blocks get narrower, in place and in replay."""
