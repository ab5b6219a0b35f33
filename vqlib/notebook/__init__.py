"""What only the notebooks use: set-up, figures, panels, and the checkers of the exercises."""
