"""Claim: most models of torchvision, timm and transformers grow as they are, and stay exact."""
