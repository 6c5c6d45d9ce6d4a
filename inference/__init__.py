"""From a picture to its classes, and from a split to its figures."""
