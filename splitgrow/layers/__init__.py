"""One grown layer: its blocks, where their channels lie, how it runs, and the types of layers."""
