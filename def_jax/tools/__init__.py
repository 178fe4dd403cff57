"""Programs and helpers beside the library: they read what it compiles, and plan what it would save."""
