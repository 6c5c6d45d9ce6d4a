"""How far a model can be trusted: folds, agreement, calibration, familiarity, label errors."""
