"""CUDA devices that are not there: arithmetic of the CPU under the rules of CUDA and NCCL.

Within `pretended_cuda()` a tensor that is moved to a CUDA device, or made there, stays a CPU
tensor, but its storage is remembered as lying on that device: Python sees
`tensor.device == cuda:0`, and what CUDA refuses is refused. Modules, autograd, optimizers,
Lightning and transformers run as they are.
Calls for which the host waits for the device are counted with the place they come from.

What it cannot see: C++ that makes tensors without Python (gradients within the autograd engine are
taken to be wherever they are asked for), weights that FSDP2 shares out over ranks, kernels' own
numerics, and streams.
"""

import importlib
import os
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves

CPU = torch.device("cpu")


class CudaRuleError(RuntimeError):
    """An operation that a real device refuses; a RuntimeError as PyTorch's own."""


# Names of what only describes a tensor, or takes operands of several devices.
_ANYWHERE = {
    *("__get__", "__set__", "__delete__", "__len__", "__repr__", "__format__", "__hash__"),
    *("__deepcopy__", "__reduce_ex__", "__setstate__", "__class__", "__dir__", "as_subclass"),
    *("backward", "grad", "retain_grad", "register_hook", "register_post_accumulate_grad_hook"),
    *("requires_grad_", "set_", "set_data", "type", "type_as", "new_tensor", "result_type"),
    *("can_cast", "size", "stride", "dim", "ndimension", "numel", "nelement", "element_size"),
    *("data_ptr", "untyped_storage", "storage_offset", "is_contiguous", "is_floating_point"),
    *("is_complex", "is_signed", "is_conj", "is_neg", "is_inference", "is_shared", "is_same_size"),
    *("share_memory_", "record_stream", "_is_view", "_make_subclass", "broadcast_tensors"),
    *("_has_compatible_shallow_copy_type", "_cudnn_rnn_flatten_weight", "has_names"),
}
# Names of what the host has to know the outcome of: the size of a result, a number, an error code.
_WAITING = {
    *("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__contains__"),
    *("is_nonzero", "equal", "allclose", "nonzero", "argwhere", "masked_select", "unique"),
    *("unique_consecutive", "bincount", "histc", "combinations"),
    *("svd", "svdvals", "eigh", "eigvalsh", "eig", "lstsq", "inv", "solve", "cholesky"),
}
# Index tensors may lie on the CPU where values lie on a device.
_INDEXING = {"__getitem__", "index_put_", "index_put"}
_JOINING = {"cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack"}
_MATMULS = {"matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "linear", "einsum"}


class PretendedDevices(TorchFunctionMode):
    """The mode that `pretended_cuda` enters.

    Attributes:
        waits: How often the host waited, by (function, `package/file.py:function` of the caller).
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[tuple[str, str]] = Counter()
        self.current = 0
        self._places: dict[int, tuple[torch.device, StorageWeakRef]] = {}
        self._pinned: dict[int, StorageWeakRef] = {}

    def place_of(self, tensor: Tensor) -> torch.device | None:
        """Where a tensor lies; `None` for gradients that the autograd engine has just made."""
        with torch._C.DisableTorchFunction():
            if tensor.device.type != "cpu":
                return None
            key = _key(tensor)
            if key in self._places:
                return self._places[key][0]
            return None if torch._C._current_graph_task_id() != -1 else CPU

    def put(self, tensor: Tensor, place: torch.device) -> None:
        """Remember where a tensor's storage lies."""
        with torch._C.DisableTorchFunction():
            if tensor.device.type == "cpu" and (key := _key(tensor)) is not None:
                # The weak reference keeps the address from being given to another storage.
                self._places[key] = place, StorageWeakRef(tensor.untyped_storage())
        if len(self._places) > 20_000:
            self._forget_freed()

    def device(self, asked: Any) -> torch.device:
        """A device as a user writes it, with its number."""
        device = torch.device("cuda", asked) if isinstance(asked, int) else torch.device(asked)
        if device.type == "cuda" and device.index is None:
            return torch.device("cuda", self.current)
        return device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            return self._attribute(resolve_name(func) or "", func, args)
        answer = getattr(self, f"_call_{name}", None)
        if answer is not None and args and isinstance(args[0], Tensor):
            return answer(func, args, kwargs)
        return self._computed(func, name, args, kwargs)

    def _attribute(self, name: str, func: Any, args: Any) -> Any:
        found = func(*args)
        place = self.place_of(args[0])
        if name == "torch.Tensor.grad.__get__":
            if found is not None and place is not None:
                self.put(found, place)
        elif place is not None and place.type == "cuda":
            answers = {"device": place, "is_cuda": True, "is_cpu": False}
            return answers.get(name.split(".")[-2], found)
        return found

    def _computed(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        wanted = None if kwargs.get("device") is None else self.device(kwargs["device"])
        if wanted is not None and wanted.type == "cuda":
            kwargs["device"] = CPU
            if name in ("tensor", "as_tensor", "new_tensor"):
                self._wait(f"{name} to the device")
        # A number in a tensor on the CPU goes with operands of any device.
        places = {self.place_of(t) for t in tensors if t.dim() or self._on_device(t)} - {None}
        target = wanted or next((p for p in places if p.type == "cuda"), CPU)
        self._check_generator(name, kwargs.get("generator"), target)
        if wanted is None and name not in _ANYWHERE:
            self._check_places(name, args, tensors, places)
        if any(place.type == "cuda" for place in places):
            self._check_determinism(name, args, kwargs, tensors)
            self._note_wait(name, args, kwargs)
        result = func(*args, **kwargs)
        if wanted is None and tensors and not places:
            return result  # within the autograd engine, or on the meta device
        known = {_key(tensor) for tensor in tensors}
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and _key(made) not in known:
                self.put(made, target)
        return result

    # Moves between devices.

    def _call_to(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        target, rest = self.place_of(args[0]), list(args[1:])
        for number, value in enumerate(rest):
            if isinstance(value, Tensor):
                target = self.place_of(value)
            elif isinstance(value, (str, torch.device)) or type(value) is int:
                target, rest[number] = self.device(value), CPU
        if kwargs.get("device") is not None:
            target, kwargs["device"] = self.device(kwargs["device"]), CPU
        if target is not None and target.type == "meta":
            return (
                func(*args, **{**kwargs, "device": target}) if "device" in kwargs else func(*args)
            )
        lazily = bool(kwargs.get("non_blocking")) or True in rest[1:2]
        return self._moved(args[0], func(args[0], *rest, **kwargs), target, lazily)

    def _call_cuda(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        asked = args[1] if len(args) > 1 else kwargs.get("device")
        target = self.device("cuda" if asked is None else asked)
        return self._moved(args[0], args[0], target, bool(kwargs.get("non_blocking")))

    def _call_cpu(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        return self._moved(args[0], args[0], CPU, lazily=False)

    def _call_copy_(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        source, target = self.place_of(args[1]), self.place_of(args[0])
        lazily = bool(kwargs.get("non_blocking")) or args[2:3] == (True,)
        if source is not None and target is not None and source != target:
            self._note_move(source, target, lazily)
        return func(*args, **kwargs)

    def _moved(
        self, tensor: Tensor, result: Tensor, target: torch.device | None, lazily: bool
    ) -> Tensor:
        source = self.place_of(tensor)
        if target is None or source is None:
            return result
        if target != source:
            self._note_move(source, target, lazily)
            with torch._C.DisableTorchFunction():
                if _key(result) == _key(tensor):
                    result = result.clone()
        if _key(result) != _key(tensor):
            self.put(result, target)
        return result

    def _note_move(self, source: torch.device, target: torch.device, lazily: bool) -> None:
        if lazily and target.type == "cpu":
            raise CudaRuleError(
                "a copy to the CPU with non_blocking=True is read before it is there"
            )
        if not lazily:
            self._wait("copy from the device" if target.type == "cpu" else "copy to the device")

    # What lies where, as seen by one tensor.

    def _call_get_device(self, func: Any, args: Any, kwargs: Any) -> int:
        place = self.place_of(args[0])
        return place.index if place is not None and place.type == "cuda" else -1

    def _call_numpy(self, func: Any, args: Any, kwargs: Any) -> Any:
        if self._on_device(args[0]):
            raise CudaRuleError(
                "can't convert a tensor of a CUDA device to numpy; use Tensor.cpu()"
            )
        return func(*args, **kwargs)

    _call___array__ = _call___dlpack__ = _call_numpy

    def _call_pin_memory(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        if self._on_device(args[0]):
            raise CudaRuleError("cannot pin a tensor of a CUDA device, only dense CPU tensors")
        with torch._C.DisableTorchFunction():
            pinned: Tensor = args[0].clone()
            self._pinned[pinned.untyped_storage()._cdata] = StorageWeakRef(pinned.untyped_storage())
        return pinned

    def _call_is_pinned(self, func: Any, args: Any, kwargs: Any) -> bool:
        return _key(args[0]) in self._pinned

    def _call___setitem__(self, func: Any, args: Any, kwargs: Any) -> None:
        """Values are copied from anywhere into a slice, but not to places that tensors name."""
        values, index, given = args
        indices = [i for i in _as_tuple(index) if isinstance(i, Tensor)]
        if not isinstance(given, Tensor) or self.place_of(given) in (None, self.place_of(values)):
            self._check_places("__setitem__", (values, index), [values, *indices], set())
            if isinstance(given, Tensor) and given.dim() and _selects_by_mask(indices):
                self._wait("assignment by mask")
        elif given.dim() and indices:
            raise CudaRuleError("__setitem__: values lie on another device than the tensor")
        elif given.dim() or self._on_device(given):
            self._note_move(self.place_of(given), self.place_of(values), lazily=False)
        return func(*args, **kwargs)

    # Rules.

    def _on_device(self, tensor: Tensor) -> bool:
        place = self.place_of(tensor)
        return place is not None and place.type == "cuda"

    def _check_places(self, name: str, args: Any, tensors: list[Tensor], places: set[Any]) -> None:
        if name in _JOINING:  # numbers count too
            places = {self.place_of(tensor) for tensor in tensors} - {None}
        elif name in (*_INDEXING, "__setitem__"):
            home = self.place_of(args[0])
            places = {home} | {
                p for t in tensors[1:] if t.dim() and (p := self.place_of(t)) not in (None, CPU)
            }
            if name.startswith("index_put") and self.place_of(args[2]) == CPU and args[2].dim():
                places.add(CPU)
        if len(places - {None}) > 1:
            shown = ", ".join(f"{tuple(t.shape)} on {self.place_of(t)}" for t in tensors)
            raise CudaRuleError(
                f"Expected all tensors to be on the same device in {name}, got {shown}"
            )

    def _check_generator(self, name: str, generator: Any, target: torch.device) -> None:
        if isinstance(generator, _real_generator) and _home_of(generator).type != target.type:
            raise CudaRuleError(
                f"Expected a '{target.type}' device type for generator in {name} but found"
                f" '{_home_of(generator).type}'"
            )

    def _check_determinism(self, name: str, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
        """What `torch.use_deterministic_algorithms` says of CUDA."""
        if not torch.are_deterministic_algorithms_enabled():
            return
        refused = {
            "median": len(args) > 1 or "dim" in kwargs,
            "nanmedian": len(args) > 1 or "dim" in kwargs,
            "cumsum": tensors[0].is_floating_point(),
            "bincount": len(args) > 1 or "weights" in kwargs,
            "scatter_reduce": "prod" in (*args, *kwargs.values()),
            "scatter_reduce_": "prod" in (*args, *kwargs.values()),
            "histc": True,
            "kthvalue": True,
        }
        workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
        if name in _MATMULS and workspace not in (":4096:8", ":16:8"):
            raise CudaRuleError(
                f"{name}: cuBLAS is deterministic with CUBLAS_WORKSPACE_CONFIG only"
            )
        if refused.get(name):
            raise CudaRuleError(f"{name} does not have a deterministic implementation on CUDA")

    # Waiting.

    def _note_wait(self, name: str, args: Any, kwargs: Any) -> None:
        sized_by_values = {
            "repeat_interleave": "output_size" not in kwargs,
            "where": len(args) == 1,
        }
        if name in _WAITING or sized_by_values.get(name):
            self._wait(name)
        elif name == "__getitem__":
            indices = [index for index in _as_tuple(args[1]) if isinstance(index, Tensor)]
            if _selects_by_mask(indices):
                self._wait("selection by mask")
            elif any(index.dim() and self.place_of(index) == CPU for index in indices):
                self._wait("copy of indices to the device")

    def _wait(self, what: str) -> None:
        self.waits[what, _caller()] += 1

    def _forget_freed(self) -> None:
        with torch._C.DisableTorchFunction():
            for kept in (self._places, self._pinned):
                for key, value in list(kept.items()):
                    if (value[1] if isinstance(value, tuple) else value).expired():
                        del kept[key]  # type: ignore[attr-defined]


def _key(tensor: Tensor) -> int | None:
    try:
        with torch._C.DisableTorchFunction():
            return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # wrappers without a storage of their own
        return None


def _as_tuple(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _selects_by_mask(indices: list[Tensor]) -> bool:
    return any(index.dtype in (torch.bool, torch.uint8) for index in indices)


def _caller() -> str:
    """`package/file.py:function` of the innermost frame that is neither ours nor PyTorch's."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file != __file__ and "/torch/" not in file and not file.startswith("<"):
            file = file.rsplit("site-packages/", 1)[-1]
            for root in ("hrsa_lightning/", "tests/"):
                file = root + file.rsplit(f"/{root}", 1)[-1] if f"/{root}" in file else file
            return f"{file}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "?"


_real_generator = torch.Generator
_homes: "weakref.WeakKeyDictionary[Any, torch.device]" = weakref.WeakKeyDictionary()


def _home_of(generator: Any) -> torch.device:
    return _homes.get(generator, CPU)


class _Generator(_real_generator):  # type: ignore[misc, valid-type]
    """A generator of the CPU that remembers which device it was made for."""

    def __new__(cls, device: Any = "cpu") -> Any:
        made = super().__new__(cls, device="cpu")
        _homes[made] = torch.device(device)
        return made


_COLLECTIVES = (
    *("all_reduce", "all_gather", "all_gather_into_tensor", "broadcast", "reduce", "gather"),
    *("scatter", "reduce_scatter", "reduce_scatter_tensor", "send", "recv"),
    *("all_to_all", "all_to_all_single"),
)


@contextmanager
def pretended_cuda(
    num_devices: int = 1, nccl: bool = False, memory: int = 40 * 2**30
) -> Iterator[PretendedDevices]:
    """Let this process see CUDA devices.

    Args:
        num_devices: How many.
        nccl: The default process group is NCCL's: collectives take tensors of a device only. The
            work is done by gloo.
        memory: Bytes of each device, all free.
    """
    devices = PretendedDevices()
    with ExitStack() as stack:

        def replace(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value, create=True))

        for name, value in _cuda_module(devices, num_devices, memory).items():
            replace(torch.cuda, name, value)
        replace(torch.accelerator, "is_available", lambda: True)
        replace(torch, "Generator", _Generator)
        _pretend_autocast(replace)
        for module in ("torch.utils._foreach_utils", "torch.optim.optimizer"):
            _pretend_grouping(devices, importlib.import_module(module), replace)
        _pretend_grouping(devices, importlib.import_module("torch.nn.utils.clip_grad"), replace)
        if nccl:
            _pretend_nccl(devices, replace)
        stack.enter_context(devices)
        yield devices


def _cuda_module(devices: PretendedDevices, num_devices: int, memory: int) -> dict[str, Any]:
    properties = mock.Mock(total_memory=memory, major=8, minor=0, multi_processor_count=108)
    properties.name = "Pretended"
    state = torch.zeros(16, dtype=torch.uint8)

    def set_device(device: Any) -> None:
        devices.current = devices.device(device).index

    constants = {
        "is_available": True,
        "is_initialized": True,
        "device_count": num_devices,
        "_is_in_bad_fork": False,
        "is_current_stream_capturing": False,
        "is_bf16_supported": True,
        "memory_reserved": 0,
        "memory_allocated": 0,
        "max_memory_allocated": 123_456_789,
        "memory_stats": {},
        "mem_get_info": (memory, memory),
        "get_device_name": "Pretended",
        "get_device_capability": (8, 0),
        "get_device_properties": properties,
        "get_rng_state": state,
        "get_rng_state_all": [state] * num_devices,
    }
    nothing = (
        *("init", "_lazy_init", "synchronize", "empty_cache", "ipc_collect", "manual_seed"),
        *("manual_seed_all", "reset_peak_memory_stats", "set_rng_state", "set_rng_state_all"),
    )
    return {
        **{name: _returning(value) for name, value in constants.items()},
        **{name: _returning(None) for name in nothing},
        "current_device": lambda: devices.current,
        "set_device": set_device,
        "current_stream": lambda device=None: mock.MagicMock(),
        "Stream": mock.MagicMock,
        "Event": mock.MagicMock,
        "stream": lambda stream=None: nullcontext(),
        "device": lambda device=None: nullcontext(),
        "default_generators": [mock.MagicMock()] * num_devices,
    }


def _returning(value: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: value


def _pretend_autocast(replace: Callable[[Any, str, Any], None]) -> None:
    begin, enabled = torch.autocast.__init__, torch.is_autocast_enabled
    dtype = torch.get_autocast_dtype

    def begin_on_cpu(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        begin(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    replace(torch.autocast, "__init__", begin_on_cpu)
    replace(torch, "is_autocast_enabled", lambda device_type="cpu": enabled("cpu"))
    replace(torch, "get_autocast_dtype", lambda device_type: dtype("cpu"))


def _pretend_grouping(
    devices: PretendedDevices, module: Any, replace: Callable[[Any, str, Any], None]
) -> None:
    """Optimizers and clipping group tensors in C++, which names the device of the arithmetic."""
    name = "_group_tensors_by_device_and_dtype"
    original = getattr(module, name)

    def grouped(lists: Any, with_indices: bool = False) -> Any:
        found = {}
        for (device, dtype), value in original(lists, with_indices).items():
            first = next(tensor for tensor in value[0][0] if tensor is not None)
            found[devices.place_of(first) or device, dtype] = value
        return found

    replace(module, name, grouped)


def _pretend_nccl(devices: PretendedDevices, replace: Callable[[Any, str, Any], None]) -> None:
    begin = dist.init_process_group

    def init_process_group(backend: Any = None, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("device_id", None)
        begin("gloo", *args, **kwargs)

    def on_devices_only(collective: Any) -> Any:
        def checked(*args: Any, **kwargs: Any) -> Any:
            # `all_gather_object` and the like bring their bytes to the device by themselves.
            caller = sys._getframe(1).f_code
            if "object" not in caller.co_name:
                for leaf in tree_leaves((args, kwargs)):
                    if isinstance(leaf, Tensor) and devices.place_of(leaf) == CPU:
                        raise CudaRuleError(
                            f"No backend type associated with device type cpu"
                            f" ({collective.__name__} under NCCL)"
                        )
            return collective(*args, **kwargs)

        return checked

    replace(torch.cuda.nccl, "version", lambda: (2, 0, 0))
    replace(dist, "get_backend", lambda group=None: "nccl")
    replace(dist, "init_process_group", init_process_group)
    for name in _COLLECTIVES:
        replace(dist, name, on_devices_only(getattr(dist, name)))
