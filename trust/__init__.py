"""How far a model can be trusted: agreement, calibration, familiarity, label errors."""
