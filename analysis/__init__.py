"""Figures, one file each; they read the store and the emergence tables only."""
