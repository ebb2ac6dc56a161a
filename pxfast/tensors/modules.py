"""torch's list of modules, of one class that type checkers know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Generic, TypeVar, overload

    ModuleT = TypeVar("ModuleT", bound=nn.Module)

    class ModuleList(nn.ModuleList, Generic[ModuleT]):
        """``nn.ModuleList``, whose items are not just any modules; when the program runs it is that class itself."""

        def __iter__(self) -> Iterator[ModuleT]: ...
        @overload
        def __getitem__(self, idx: slice) -> ModuleList[ModuleT]: ...
        @overload
        def __getitem__(self, idx: int) -> ModuleT: ...
        def __getitem__(self, idx: int | slice) -> ModuleT | ModuleList[ModuleT]: ...

else:
    ModuleList = nn.ModuleList
