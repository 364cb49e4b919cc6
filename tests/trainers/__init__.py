"""Training runs in the tools that people train with, killed and resumed by the tools' own means."""
