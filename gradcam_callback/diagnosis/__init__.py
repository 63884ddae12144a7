"""Why a gradient is missing, and the line of code where it ends."""
