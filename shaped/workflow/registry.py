"""Parts by name: workflows, data, models, sequences, metrics and validators, ours and those of other packages.

    @models.register("small")
    def small() -> ModelProvider: ...

    models.get("small")              # or "package.module:attribute", which needs no registration

Another package registers a part in its pyproject.toml; it is imported when it is asked for, not before:

    [project.entry-points."shaped.models"]
    resnet = "their_package.models:resnet"
"""

import inspect
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, overload

from shaped.arguments import checked
from shaped.errors import ShapedError, nearest

T = TypeVar("T")
F = TypeVar("F")


class Registry(Generic[T]):
    """Names and what they stand for. A name means one thing: using it twice is an error.

    Args:
        kind: What the entries are, in the plural ("models"); the entry-point group is `shaped.models`.
        built_in: Names with `module:attribute`, imported when asked for.

    Raises:
        ValueError: `kind` is no text.
    """

    def __init__(self, kind: str, **built_in: str) -> None:
        if not isinstance(kind, str):  # not `checked`, since ours are made where the package is imported
            raise ValueError(f"kind is {kind!r}; it is a text")
        self.kind, self.group = kind, f"shaped.{kind}"
        self._entries: dict[str, Any] = {name: EntryPoint(name, where, self.group) for name, where in built_in.items()}

    @overload
    def register(self, name: str) -> Callable[[F], F]: ...

    @overload
    def register(self, name: str, value: F) -> F: ...

    def register(self, name: str, value: Any = None) -> Any:
        """Give a name to a part: `register(name, value)`, or the decorator `@register(name)`.

        Raises:
            ValueError: The name is empty. ShapedError: It is taken, by us, by you, or by an installed package.
        """
        if value is None:
            return lambda decorated: self.register(name, decorated)
        if not isinstance(name, str) or not name.strip() or ":" in name:
            raise ValueError(f"{self.kind}: {name!r} is no name; a name is a text without a colon")
        taken = self._theirs().get(name, [])
        if (
            taken or self._entries.setdefault(name, value) is not value
        ):  # one operation, so that threads cannot both win
            raise ShapedError(f"{self.kind}: `{name}` is taken by {_origin((taken or [self._entries[name]])[0])}")
        return value

    @checked
    def unregister(self, name: str) -> None:
        """Forget a name that was registered here; one of an installed package stays.

        Raises:
            ShapedError: There is no such name.
        """
        if self._entries.pop(name, None) is None:
            raise self._missing(name)

    @checked
    def get(self, name: str) -> T:
        """What a name stands for.

        Raises:
            ShapedError: Nothing has that name (the nearest is suggested), two packages claim it, or it cannot be
            imported.
        """
        found = [self._entries[name]] if name in self._entries else self._theirs().get(name, [])
        if not found and ":" in name:
            found = [EntryPoint(name, name, self.group)]
        if not found:
            raise self._missing(name)
        if len(found) > 1:
            raise ShapedError(f"{self.kind}: `{name}` is claimed by {' and by '.join(map(_origin, found))}")
        if not isinstance(found[0], EntryPoint):
            value: T = found[0]
            return value
        try:
            loaded: T = found[0].load()
        except (ImportError, AttributeError, ValueError) as error:
            raise ShapedError(f"{self.kind}: `{name}` of {_origin(found[0])} cannot be imported: {error}") from error
        return loaded

    @checked
    def origin(self, name: str) -> str:
        """Where a name comes from: a package, a module, or `this program`.

        Raises:
            ShapedError: Nothing has this name.
        """
        found = [self._entries[name]] if name in self._entries else self._theirs().get(name)
        if not found:
            raise self._missing(name)
        return " and ".join(map(_origin, found))

    @checked
    def about(self, name: str) -> str:
        """The first line of what a part says of itself; why it cannot be imported, where it cannot."""
        try:
            part: Any = self.get(name)
        except ShapedError as error:
            return f"broken: {error}"
        said = getattr(part, "about", None)
        return (said if isinstance(said, str) else inspect.getdoc(part) or "").partition("\n")[0]

    def _theirs(self) -> dict[str, list[EntryPoint]]:
        """Entry points of installed packages, by name; read anew, since a package may be installed meanwhile."""
        found: dict[str, list[EntryPoint]] = {}
        for entry in entry_points(group=self.group):
            if entry not in found.setdefault(entry.name, []):
                found[entry.name].append(entry)
        return found

    def _missing(self, name: str) -> ShapedError:
        known = list(self)
        hint = nearest(str(name), known) or (f"; there are {', '.join(known)}" if known else "; there are none")
        return ShapedError(f"{self.kind}: nothing is named `{name}`{hint}")

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._theirs()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._entries, *self._theirs()}))

    def __len__(self) -> int:
        return sum(1 for _ in self)  # list(self) would ask for the length

    def __repr__(self) -> str:
        return f"Registry({self.kind!r}: {', '.join(self) or 'empty'})"


def _origin(entry: Any) -> str:
    if not isinstance(entry, EntryPoint):
        return "this program"
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value


def _built_in(kind: str, module: str, names: str) -> Registry[Any]:
    return Registry(kind, **{name: f"shaped.workflow.{module}:{name}" for name in names.split()})


workflows: Registry[Any] = Registry("workflows", training="shaped.workflow.workflow:TrainingWorkflow")
data = _built_in("data", "tables", "breast_cancer diabetes digits iris wine")
models = _built_in("models", "networks", "linear_regressor mlp_classifier mlp_regressor")
sequences: Registry[Any] = Registry("sequences", eras="shaped.workflow.sequences:SequenceProvider")
metrics = _built_in(
    "metrics",
    "metrics",
    "accuracy auroc average_precision f1 mae mape mcc mse pearson perplexity precision r2 recall rmse spearman",
)
validators = Registry[Any](
    "validators", cross_validator="shaped.workflow.validation:CrossValidator", split="shaped.workflow.splits:split"
)
REGISTRIES = {r.kind: r for r in (workflows, data, models, sequences, metrics, validators)}
