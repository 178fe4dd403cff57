"""Every method at the bytes of the others."""
