"""All that is to be measured on a GPU, by one command of ten minutes."""
