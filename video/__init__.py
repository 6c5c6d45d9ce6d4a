"""Frames and sound from and to files, masks drawn on them, stages side by side."""
