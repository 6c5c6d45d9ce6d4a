"""The device: each process its own, and one set of numerics for all scripts."""

import torch

from common import cli, distributed
from common.device import choose_device, compute_repeatably, spare_cores


def test_each_process_takes_its_own_gpu_before_it_touches_any(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("set", device)))
    monkeypatch.setattr(torch, "empty", lambda *_, device: calls.append(("touch", device)))
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda *_, **__: iter([(None, 6, 8)]))
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda *_, device_id, **__: calls.append(device_id)
    )
    for name, value in (("RANK", "6"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "2")):
        monkeypatch.setenv(name, value)
    own = torch.device("cuda:2")
    for asked in ("auto", "cuda", "cuda:0"):
        calls.clear()
        device = choose_device(asked)
        distributed.init(device)
        assert device == own
        assert calls == [("set", own), ("touch", own), own]


def test_processes_that_torchrun_starts_again_find_nothing_of_those_before(monkeypatch):
    kept, seen = torch.distributed.HashStore(), []
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda *_, **__: iter([(kept, 0, 1)]))
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda *_, store, **__: seen.append(store)
    )
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("GROUP_WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    for count in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
        distributed.init(torch.device("cpu"))
    first, second = seen
    first.set("address", "of one that is gone")
    assert not second.check(["address"])


def test_whoever_chooses_a_device_computes_as_all_scripts_do():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = False
        cudnn.benchmark = True
        choose_device("cpu")
        assert (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark) == (True, True, False)
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


def test_an_operation_that_cannot_be_repeated_ends_the_run_with_a_sentence(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    try:
        compute_repeatably()
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    # As torch says it where there is a GPU.
    error = RuntimeError("x_cuda does not have a deterministic implementation, but you set ...")
    assert cli.explain(error).startswith("--deterministic cannot be kept: x_cuda")


def test_what_runs_beside_a_model_has_the_cores_that_it_leaves_free(monkeypatch):
    for cores, threads, free, beside_gpu in (
        (6, 1, 5, 6),
        (6, 4, 2, 6),
        (6, 6, 1, 6),
        (2, 2, 1, 2),
        (16, 16, 4, 16),
        (64, 32, 16, 16),
        (1, 1, 1, 1),
    ):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, n=cores: set(range(n)), raising=False)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert spare_cores(torch.device("cpu")) == free
        assert spare_cores(torch.device("cuda")) == beside_gpu
