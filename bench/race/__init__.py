"""What runs side by side, and how turns are taken."""
