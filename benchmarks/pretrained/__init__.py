"""Do the checkpoints that `splitgrow.save_pretrained` writes load without splitgrow, as they are?

For each family of transformers a small model grows in each role that its config may express, is
saved, and is read by `from_pretrained` in a process that cannot import splitgrow.
"""
