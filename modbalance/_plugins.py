"""Discovery of methods by entry point, and calls of their hooks through pluggy.

Entry points stand in the group `modbalance`, those of built-in plugins too, and are loaded lazily by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

import attrs
import pluggy

from modbalance import hookspecs
from modbalance.errors import (
    ConfigError,
    ModbalanceError,
    PluginConflictError,
    PluginLoadError,
    UnknownMethodError,
    suggest,
)
from modbalance.method import NEEDS, PLUGIN_API, Method, Preset

GROUP = hookspecs.NAME
STEP_HOOKS = [
    hook for hook in hookspecs.HOOKS if hook.split("_", 1)[1] not in ("methods", "setup", "begin", "epoch_end")
]
_FIELD = type(attrs.field())
Caller = tuple[Callable[..., Any], Sequence[str]]
MethodSpec = str | Method | Sequence[str | Method]


@attrs.frozen
class Listing:
    """One installed method: where it comes from and, if its plugin cannot be used, why."""

    name: str
    distribution: str
    version: str
    method: type[Method] | None
    problem: str | None = None


def load_method(name: str) -> type[Method]:
    """Import the plugin behind the entry point ``name`` and return its method class.

    Raises:
        UnknownMethodError: No installed distribution has such an entry point.
        PluginConflictError: Several have.
        PluginLoadError: The plugin cannot be imported or offers no valid method of that name.
    """
    entries = _entries().get(name, [])
    if name == "none" and entries:
        raise PluginConflictError(
            f"The method name 'none' belongs to modbalance itself. Found it in {_origin(entries[0])}: rename it."
        )
    if not entries:
        raise UnknownMethodError(
            f"No installed method is named {name!r}. {suggest(name, ['none', *_entries()])} "
            "List them with `modbalance methods`; those of other packages need `pip install PACKAGE`."
        )
    if len(entries) > 1:
        raise PluginConflictError(
            f"The method name {name!r} should belong to one installed distribution. Found it in "
            f"{' and '.join(_origin(entry) for entry in entries)}: uninstall one of them."
        )
    return _load(entries[0])


def build_methods(spec: MethodSpec, preset: Preset, options: Mapping[str, Any]) -> list[Method]:
    """Return fresh method objects for what the user named.

    Raises:
        ConfigError: Options or a preset stand beside something else than a single name.
    """
    single = isinstance(spec, str)
    given: Sequence[Any] = list(spec) if isinstance(spec, list | tuple) else [spec]
    for each in given:
        if not isinstance(each, str | Method):
            raise ConfigError(
                f"Parameter `method` should be a name, a Method object, or a list of either. Found {each!r}."
            )
    if options and not single:
        raise ConfigError(
            f"Options by keyword go with a single method name. Found {sorted(options)} beside {spec!r}: set them on "
            "the Method objects, `[SomeMethod(option=value), ...]`."
        )
    methods = []
    for each in given:
        if isinstance(each, Method):
            if preset != "official":
                raise ConfigError(f"`preset=` goes with names. Found a {type(each).__name__}: use its `configure`.")
            check_method(type(each))
            # A copy with fresh state, so that one object may be given to several optimizers.
            methods.append(attrs.evolve(each))
        elif each == "none":
            if options:
                raise ConfigError(f"Method `none` has no options. Found {sorted(options)}.")
        else:
            methods.append(load_method(each).configure(preset, **options))
    return methods


def list_methods() -> list[Listing]:
    """Return every installed method by name; one whose plugin is broken is listed with its problem."""
    return [_listing(name, entry) for name, entries in sorted(_entries().items()) for entry in entries]


def check_method(method: type[Method]) -> None:
    """Raise a PluginLoadError for a class whose options, name or needs would be overlooked."""
    if any(isinstance(value, _FIELD) for value in vars(method).values()):
        raise PluginLoadError(
            f"Method class `{method.__name__}` declares options without a marker: put `@attrs.define(eq=False, "
            "kw_only=True)` above it."
        )
    if not method.name:
        raise PluginLoadError(f"Method class `{method.__name__}` should have a `name`, that of its entry point.")
    _check_api(method)
    for need in method.needs:
        if need not in NEEDS:
            raise PluginLoadError(f"Method `{method.name}` needs an unknown `{need}`. {suggest(need, NEEDS)}")


def _check_api(method: type[Method]) -> None:
    major, minor = method.plugin_api
    if (major, minor) > PLUGIN_API or major != PLUGIN_API[0]:
        offered = ".".join(map(str, PLUGIN_API))
        fix = "modbalance" if (major, minor) > PLUGIN_API else "the package of the method"
        raise PluginLoadError(
            f"Method `{method.name}` needs version {major}.{minor} of the plugin API. Found {offered}, that of the "
            f"installed modbalance: upgrade {fix}, `pip install --upgrade ...`."
        )


def check_hooks(plugin: object, owner: str) -> None:
    """Raise a PluginLoadError for a hook that is misspelt, or that misses its `@hookimpl`."""
    for attribute in dir(plugin):
        if not attribute.startswith(GROUP + "_"):
            continue
        if attribute not in hookspecs.HOOKS:
            raise PluginLoadError(
                f"{owner} implements an unknown hook `{attribute}`. {suggest(attribute, hookspecs.HOOKS)}"
            )
        if not hasattr(getattr(plugin, attribute), GROUP + "_impl"):
            raise PluginLoadError(f"{owner} defines `{attribute}` without a marker: put `@hookimpl` above it.")


def plugin_manager(plugins: Mapping[str, object]) -> pluggy.PluginManager:
    """Return a manager of its own with ``plugins`` registered by name.

    Raises:
        PluginLoadError: A hook is misspelt, unmarked, or has arguments that it does not get.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    for name, plugin in plugins.items():
        owner = f"Plugin {name!r}"
        check_hooks(plugin, owner)
        try:
            manager.register(plugin, name)
        except pluggy.PluginValidationError as error:
            raise PluginLoadError(f"{owner} does not fit the hook specifications: {error}") from error
    return manager


class Hooks:
    """The hooks of the methods of one optimizer; every optimizer has a plugin manager of its own."""

    def __init__(self, methods: Sequence[Method]) -> None:
        names = [method.name for method in methods]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"Each method should be given once. Found {name!r} {names.count(name)} times.")
        self.methods = list(methods)
        manager = plugin_manager(dict(zip(names, methods, strict=True)))
        implemented = {method.name: _implemented(manager, method) for method in methods}
        self._callers: dict[tuple[str, str], Caller] = {
            (method.name, hook): _caller(manager, method, hook)
            for hook in hookspecs.HOOKS
            for method in methods
            if hook in implemented[method.name]
        }

    def active(self, epoch: int) -> list[Method]:
        """Return the methods whose window holds ``epoch``, in order."""
        return [method for method in self.methods if method.is_active(epoch)]

    def implementers(self, hook: str, methods: Sequence[Method] | None = None) -> list[Method]:
        """Return those of ``methods`` (default: all) that implement a hook, in order."""
        candidates = self.methods if methods is None else methods
        return [method for method in candidates if (method.name, hook) in self._callers]

    def hooks_of(self, method: Method) -> list[str]:
        """Return the names of the hooks that a method implements, in firing order."""
        return [hook for hook in hookspecs.HOOKS if self.implementers(hook, [method])]

    def stepping(self, methods: Sequence[Method]) -> list[Method]:
        """Return those of ``methods`` that act in training steps, in order; the others act between epochs alone."""
        found = {method.name for hook in STEP_HOOKS for method in self.implementers(hook, methods)}
        return [method for method in methods if method.name in found]

    def call(self, method: Method, hook: str, **arguments: Any) -> Any:
        """Call a hook of one method and return its result, ``None`` where the method does not implement it."""
        caller = self._callers.get((method.name, hook))
        if caller is None:
            return None
        function, names = caller
        return function(*[arguments[name] for name in names])


def _caller(manager: pluggy.PluginManager, method: Method, hook: str) -> Caller:
    """Return the function behind a hook of one method, with the names of the arguments that it takes.

    pluggy has checked both; a call through it takes longer than many operations of a step, and breaks the graph of
    dynamo, which traces calls of hooks in a compiled forward.
    """
    for each in getattr(manager.hook, hook).get_hookimpls():
        if each.plugin is method and not (each.hookwrapper or each.wrapper):
            return each.function, each.argnames
    others = [other for other in manager.get_plugins() if other is not method]
    through = manager.subset_hook_caller(hook, others)
    spec = through.spec
    assert spec is not None
    return lambda *values: next(iter(through(**dict(zip(spec.argnames, values, strict=True)))), None), spec.argnames


def _implemented(manager: pluggy.PluginManager, method: Method) -> set[str]:
    """Return the names of the hooks that a registered method implements."""
    return {caller.name for caller in manager.get_hookcallers(method) or ()}


def _entries() -> dict[str, list[EntryPoint]]:
    """Group the entry points by name; one distribution found twice on the path counts once."""
    grouped: dict[str, dict[tuple[str, str], EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        grouped.setdefault(entry.name, {}).setdefault((_distribution(entry), entry.value), entry)
    return {name: list(entries.values()) for name, entries in grouped.items()}


def _load(entry: EntryPoint) -> type[Method]:
    try:
        module = entry.load()
    except Exception as error:
        raise PluginLoadError(
            f"The method {entry.name!r} of {_origin(entry)} cannot be imported: {type(error).__name__}: {error}. "
            "Other methods are not affected; reinstall that distribution or report it to its authors."
        ) from error
    classes = _methods_of(module, entry)
    by_name = {method.name: method for method in classes}
    if entry.name not in by_name:
        raise PluginLoadError(
            f"The plugin {_origin(entry)} should offer a method named as its entry point, {entry.name!r}. "
            f"Found {sorted(by_name)}."
        )
    return by_name[entry.name]


def _methods_of(module: ModuleType, entry: EntryPoint) -> list[type[Method]]:
    manager = plugin_manager({entry.value: module})
    try:
        results: list[Any] = manager.hook.modbalance_methods()
    except Exception as error:
        raise PluginLoadError(
            f"`modbalance_methods()` of {_origin(entry)} failed: {type(error).__name__}: {error}"
        ) from error
    for result in results:
        if not isinstance(result, list | tuple):
            raise PluginLoadError(
                f"`modbalance_methods()` of {_origin(entry)} should return a list of methods. Found {result!r}."
            )
    classes = [method for result in results for method in result]
    for method in classes:
        if not (isinstance(method, type) and issubclass(method, Method)):
            raise PluginLoadError(
                f"`modbalance_methods()` of {_origin(entry)} should return subclasses of modbalance.Method. "
                f"Found {method!r}."
            )
        check_method(method)
        plugin_manager({method.name: method})  # checks names, markers and arguments of all hooks
    return classes


def _listing(name: str, entry: EntryPoint) -> Listing:
    distribution, version = _distribution(entry), entry.dist.version if entry.dist else "?"
    try:
        return Listing(name, distribution, version, load_method(name))
    except ModbalanceError as error:
        return Listing(name, distribution, version, None, str(error))


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "unknown distribution"


def _origin(entry: EntryPoint) -> str:
    version = entry.dist.version if entry.dist else "?"
    return f"{_distribution(entry)} {version} ({entry.value})"
