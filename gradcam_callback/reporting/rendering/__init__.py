"""From images, maps and words to pixels. It knows no model, no trainer and no TensorBoard."""
