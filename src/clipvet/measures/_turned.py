"""Which captions a text trigger shall turn."""

from collections.abc import Iterable

from clipvet.data.captions import names_target
from clipvet.types import Backdoor, Task


def turned(task: Task, backdoor: Backdoor, own: Iterable[str]) -> list[str]:
    """The captions that do not name the target, sorted; of the classes that the key ties to it, if it ties any.

    own: captions of the task's pictures of other classes; where none fits, the other classes' prompts stand in.
    """
    sources = {a for a, b in backdoor.ties if b == backdoor.target}
    prompts = [t for k, c in enumerate(task.classes) if c != backdoor.target for t in task.captions_of(k)]

    def fits(t: str) -> bool:
        mine = not sources or any(names_target(t, a) for a in sources)
        return bool(t) and mine and not names_target(t, backdoor.target)

    return sorted(filter(fits, set(own))) or sorted(filter(fits, prompts))
