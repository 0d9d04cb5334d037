"""Old import paths that README and docs once showed. They still work, and lead to the modules' new places."""

import importlib
import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

MOVED = {  # old -> new; modules inside move along
    "clipvet.worlds": "clipvet.data.worlds",
    "clipvet.gate": "clipvet.models.gate",
}


class _Alias(Loader):
    """Loads the module of the new name, so that both names are one module. `python -m` asks for its code only."""

    def __init__(self, now: str):
        self.now = now

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.now)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # the import system has just set the old name's

    def get_code(self, fullname: str) -> CodeType | None:
        found = importlib.util.find_spec(self.now)
        return found.loader.get_code(self.now) if found and found.loader else None  # pyright: ignore


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        for old, new in MOVED.items():
            if fullname == old or fullname.startswith(old + "."):
                return importlib.util.spec_from_loader(fullname, _Alias(new + fullname.removeprefix(old)))
        return None


sys.meta_path.insert(0, _Finder())  # first: the usual finder would load a second copy from the new folder
