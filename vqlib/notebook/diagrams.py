"""Diagrams of the models and of what flows through them, as matplotlib figures that the notebooks show."""
