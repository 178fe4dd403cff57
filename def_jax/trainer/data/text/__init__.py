"""Text: corpora from TFDS, stored as bytes and cut into windows; `stdlib` adds one that TFDS lacks."""
