"""Pages and curves to look at."""
