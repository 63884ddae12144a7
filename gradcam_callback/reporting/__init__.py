"""What is written for people: alerts, panels, and where they go."""
