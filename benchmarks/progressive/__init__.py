"""An autoencoder that grows in resolution, against one that does not."""
