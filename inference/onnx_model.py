"""An ONNX file as a model: its description read as a stranger's, run by onnxruntime.

`export.py` writes such files and `predictor` loads them like checkpoints. onnx and onnxruntime are
optional (`requirements-export.txt`), so they are imported only where they are used.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.packages import install_command
from config import ClassTable, ModelConfig, Size
from models.checkpoint import FORMAT, parse_description

# The description is a few hundred bytes a class; what is longer was not written by export.py.
MAX_DESCRIPTION = 1 << 20


class OnnxModel(nn.Module):
    """Runs a file of `export.py` behind the interface of a PyTorch model.

    Args:
        session: an `onnxruntime.InferenceSession`.
        size: (height, width) that the file was exported for; it takes no other.
        batch: pictures at once, None for any number.

    Shape:
        images: (B, 3, H, W) float32, normalised RGB, on any device.
        returns: (B, K, H, W) float32 logits on the same device.
    """

    def __init__(self, session, path: Path, num_classes: int, size: Size, batch: int | None):
        super().__init__()
        self.session, self.path = session, path
        self.num_classes, self.size, self.batch = num_classes, size, batch

    def forward(self, images: Tensor) -> Tensor:
        size = tuple(images.shape[-2:])
        if size != self.size:
            raise UserError(
                f"{self.path} works at {self.size[1]}x{self.size[0]} alone, and not at "
                f"{size[1]}x{size[0]}; pass --imgsz {self.size[1]} {self.size[0]}, or export the "
                "checkpoint at the size you want."
            )
        logits = [self._run(part) for part in images.split(self.batch or len(images))]
        return torch.cat(logits).to(images.device)

    def _run(self, images: Tensor) -> Tensor:
        missing = (self.batch or len(images)) - len(images)
        if missing:  # the last of a file with a fixed batch: repeats fill it up
            filled = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])
            return self._run(filled)[: len(images)]
        array = images.detach().float().cpu().contiguous().numpy()
        try:
            (logits,) = self.session.run(None, {self.session.get_inputs()[0].name: array})
        except Exception as error:  # onnxruntime's errors share no base class but this
            raise UserError(f"{self.path} cannot be run: {_first_line(error)}") from error
        expected = (len(images), self.num_classes, *self.size)
        if logits.shape != expected:
            raise UserError(
                f"{self.path} returned the shape {logits.shape} instead of {expected}; it was not "
                "written by export.py."
            )
        return torch.from_numpy(logits)


def load(path: Path, device: torch.device) -> tuple[OnnxModel, ModelConfig, ClassTable]:
    """Make a model of a file that `export.py` wrote.

    Args:
        device: on CUDA the GPU's onnxruntime is used where it is installed, else the CPU's.

    Raises:
        UserError: onnx or onnxruntime is missing, or the file is damaged or not one of ours.
    """
    path = Path(path)
    onnx, onnxruntime = packages()
    if not path.is_file():
        raise UserError(f"{path} is not a file; give the path of an .onnx file.")
    try:
        proto = onnx.load(path, load_external_data=False)  # files beside it are left alone
    except Exception as error:  # protobuf's DecodeError, and whatever a damaged file provokes
        raise UserError(f"{path} is damaged or no ONNX file; export it again.") from error
    config, classes = _description(proto, path)
    _check_external_data(onnx, proto, path)
    del proto  # onnxruntime reads the file itself

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()  # as many as there are real cores
    options.log_severity_level = 3  # errors; they are raised anyway
    gpu = {"CUDAExecutionProvider"} if torch.device(device).type == "cuda" else set()
    providers = [*gpu.intersection(onnxruntime.get_available_providers()), "CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # onnxruntime's errors share no base class but this
        raise UserError(f"onnxruntime cannot load {path}: {_first_line(error)}") from error
    batch = _check_interface(session, config, path)
    return OnnxModel(session, path, config.num_classes, config.input_size, batch), config, classes


def packages():
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"The package {error.name} is needed for .onnx files; run "
            f"`{install_command('-r requirements-export.txt')}`."
        ) from error
    return onnx, onnxruntime


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]


def _description(proto, path: Path) -> tuple[ModelConfig, ClassTable]:
    """The configuration and the classes that `export.py` wrote into the file, checked."""
    texts = {entry.key: entry.value for entry in proto.metadata_props}
    try:
        if sum(len(text) for text in texts.values()) > MAX_DESCRIPTION:
            raise ValueError("the description is too long")
        content = {key: json.loads(texts[key]) for key in ("format", "model_config", "classes")}
    except (KeyError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} does not say what its classes and its normalisation are; export it with "
            "export.py."
        ) from error
    if not isinstance(content["format"], int) or content["format"] > FORMAT:
        raise UserError(
            f"{path} has the format {content['format']!r}, and this version knows up to {FORMAT}; "
            "update the code."
        )
    return parse_description(content, path)


def _check_external_data(onnx, proto, path: Path) -> None:
    """Weights outside the file must lie beside it: no other file of the disk is opened.

    Raises:
        UserError: a name leads to another folder, or there is no such file.
    """
    names = set()
    for tensor in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            names |= {entry.value for entry in tensor.external_data if entry.key == "location"}
    for name in sorted(names):
        beside = path.parent / name
        if name in ("", ".", "..") or "/" in name or "\\" in name or beside.is_symlink():
            raise UserError(f"{path} asks for weights in {name!r}, outside its folder; refused.")
        if not beside.is_file():
            raise UserError(f"{path} needs its weights in {beside}; copy both files together.")


def _tensors(message) -> Iterator:
    """Every tensor in a protobuf message, however deep it hides."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "DESCRIPTOR") else value:  # or repeated
                yield from _tensors(part)


def _check_interface(session, config: ModelConfig, path: Path) -> int | None:
    """Compare what the graph takes and gives with its description; the batch, None where free."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    fits = (
        len(inputs) == len(outputs) == 1
        and inputs[0].type == outputs[0].type == "tensor(float)"
        and list(inputs[0].shape[1:]) == [3, *config.input_size]
        and list(outputs[0].shape[1:]) == [config.num_classes, *config.input_size]
    )
    if not fits:
        raise UserError(
            f"{path} does not take and give what its description says; export it again."
        )
    batch = inputs[0].shape[0]
    if isinstance(batch, int) and not 1 <= batch <= 1024:
        raise UserError(f"{path} takes {batch} pictures at once; export it again.")
    return batch if isinstance(batch, int) else None
