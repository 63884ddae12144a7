"""The demo on embedded real data, and the example configurations' data, networks and LightningModule."""
