"""Scripts beside the doors: measuring, drawing sample data, comparing with others."""
