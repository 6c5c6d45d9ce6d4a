"""What the licence of published weights lets a user do, in one sentence."""

FREE = ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc0-1.0", "unlicense")
NVIDIA = "NVIDIA Source Code License-NC"
NOT_COMMERCIAL = ("cc-by-nc", NVIDIA.casefold())


def sentence(licence: str | None) -> str:
    """What to know of a licence, by the name that the weights' publisher gives it.

    Args:
        licence: as timm's `pretrained_cfg` names it; None where it states none.
    """
    name = (licence or "").casefold()
    if name in FREE:
        return f"Licence of the weights: {licence}."
    if name.startswith(NOT_COMMERCIAL):
        return (
            f"Licence of the weights: {licence}, NOT FOR COMMERCIAL USE, and neither is a model "
            "that starts from them."
        )
    return f"Licence of the weights: {licence or 'none stated'}; read it before you use the model."
