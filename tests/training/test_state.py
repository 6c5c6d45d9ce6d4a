"""What must be the same where a run goes on."""

import dataclasses

import pytest

from common.errors import UserError
from config import ClassTable, MaskReading, ModelConfig
from training.state import check_same_run


def test_a_run_goes_on_only_where_masks_mean_what_they_meant():
    """The fingerprint of the data sees names and sizes: TIFFs keep theirs, whatever is painted."""
    config = ModelConfig(mask_reading=MaskReading(grey="binary"))
    classes, saved = ClassTable.default(), {"train_args": {}, "data_fingerprint": "same"}
    saved |= {"model_config": config.to_plain(), "classes": classes.to_plain()}
    same = classes, {}, "same"
    check_same_run(saved, config, *same)
    other = dataclasses.replace(config, mask_reading=MaskReading(grey="indices"))
    with pytest.raises(UserError, match=r"had masks with grey levels as binary,.*as indices"):
        check_same_run(saved, other, *same)
    del saved["model_config"]["mask_reading"]  # a run of before it was kept
    check_same_run(saved, other, *same)
    saved["model_config"]["mask_reading"] = {"grey": "at will"}
    with pytest.raises(UserError, match="damaged"):
        check_same_run(saved, other, *same)
