"""The tab `Grad-CAM` in TensorBoard.

TensorBoard imports every plugin that is installed when it starts, and does not start where one fails. So `entry`
imports the standard library alone, and the rest is imported when it is asked for; nothing imports torch or Lightning.
"""
