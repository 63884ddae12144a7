"""What is recorded of a run, and how it is read back: the raw maps of every look, and all that was known of them.

It knows NumPy and the format of event files, and neither torch nor Lightning, so that TensorBoard and notebooks can
read a recording at no cost.
"""
