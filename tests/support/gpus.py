"""GPUs that are only counted: Ray leases them, and a worker that looks for its finds the CPU."""

import os
from pathlib import Path

SITECUSTOMIZE = """
import importlib.abc, importlib.util, sys

NAME = "ray.air._internal.device_manager.nvidia_gpu"

class Patch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != NAME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def patched(module):
            execute(module)
            manager = module.CUDATorchDeviceManager
            manager.get_devices = lambda self: [module.torch.device("cpu")]
            manager.set_device = lambda self, device: None
        spec.loader.exec_module = patched
        return spec

sys.meta_path.insert(0, Patch())
"""


def counted_gpus(folder: Path) -> str:
    """A PYTHONPATH with which processes take the GPUs that Ray leases them for the CPU."""
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
