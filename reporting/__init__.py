"""Pages and curves to look at: of one training or evaluation, of a folder of results."""
