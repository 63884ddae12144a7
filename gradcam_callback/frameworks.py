"""The packages that Lightning comes as: `lightning`, or `pytorch_lightning` with `lightning_fabric`."""

LIGHTNING = ("lightning.", "lightning_fabric.", "pytorch_lightning.")  # how the names of its modules begin
