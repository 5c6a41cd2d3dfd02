"""Figures, verdict and pages."""
