"""GradCAMCallback in the Trainers of a program that does not know of it: `gradcam-callback attach`."""
