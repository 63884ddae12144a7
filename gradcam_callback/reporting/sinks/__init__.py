"""Where reports go: loggers, files. Only this package imports TensorBoard and touches the file system.

Scalars are not written here: they go through Lightning's own logging, so that every logger and every other callback
gets them.
"""
