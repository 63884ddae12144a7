"""One probe pass over processes, portions of memory and devices."""
