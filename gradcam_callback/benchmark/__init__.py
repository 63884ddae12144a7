"""A benchmark of methods, on pictures of which it is known what decides."""
