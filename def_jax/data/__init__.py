"""TFDS builders of the data sets that TFDS itself does not have; importing one registers it."""
