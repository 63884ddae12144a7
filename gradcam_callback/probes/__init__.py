"""The fixed images: where they come from, and what is known about them."""
