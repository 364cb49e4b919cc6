"""Units taken out: asked for, chosen by a criterion, or dead."""
