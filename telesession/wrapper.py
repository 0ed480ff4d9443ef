"""The one wrapper that a handler gets, however many sessions are declared on it."""

import functools
import inspect
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from telesession.backlog import backlogs
from telesession.checks import called, check_handler
from telesession.errors import SessionBusy
from telesession.visit import Dropped, Visit

if TYPE_CHECKING:
    from telesession.declaration import Declaration

logger = logging.getLogger("telesession")

Handler = TypeVar("Handler", bound=Callable[..., Any])
Condition: TypeAlias = Callable[[Any], object]  #: takes a session; whether the handler is for it
_MARK = "__telesession__"


class Stack:
    """What a wrapper carries: the handler, and the declarations on it, outermost first."""

    def __init__(
        self, declaration: "Declaration", handler: Any = None, condition: Condition | None = None
    ) -> None:
        self.declarations: tuple[Declaration, ...] = (declaration,)
        self.conditions: tuple[tuple[Declaration, Condition], ...] = ()
        if condition is not None:
            self.conditions = ((declaration, condition),)
        self.handler = handler
        self.wrapper: Any = None
        # functools.wraps copies __dict__, so the stack that a foreign decorator wraps shows
        # through it; only a wrapper's own stack is taken apart.
        inner = getattr(handler, _MARK, None)
        if isinstance(inner, Stack) and inner.wrapper is handler:
            self.declarations += inner.declarations
            self.conditions += inner.conditions
            self.handler = inner.handler
        self.stores = list({id(one.backend): one.backend for one in self.declarations}.values())
        self.lock_timeout = min(one.lock_timeout for one in self.declarations)
        if all(one.busy == "drop" for one in self.declarations):
            self.lock_timeout = 0.0  # of other processes, too
        queued = [one for one in self.declarations if one.busy == "queue"]
        self.queued = queued[0] if queued else None
        properties = [one.attribute for one in self.declarations]
        if declaration.attribute in properties[1:]:
            raise ValueError(
                f"property={declaration.attribute!r} is declared twice on {called(handler)}: "
                "give each session of a stack a property of its own. (when(...) declares its "
                "session itself, and takes several conditions at once.)"
            )
        if len(queued) > 1:
            raise TypeError(
                f"{called(self.handler)} has two sessions with busy='queue', and an update can "
                "wait in one line only: leave it to the one that most updates share"
            )
        if queued and self.conditions:
            raise TypeError(
                f"{called(self.handler)} has when(...) and busy='queue': an update that waits in "
                "line can't be passed on to the next handler. Use busy='wait' or 'drop' with when."
            )

    def drops(self, busy: SessionBusy) -> bool:
        """Whether an update is to be ignored that found its sessions in use."""
        return isinstance(busy, Dropped) or self.lock_timeout == 0


def wrap(
    declaration: "Declaration", handler: Handler, condition: Condition | None = None
) -> Handler:
    """The handler with the session of ``declaration``; and, if given, only where it matches."""
    if isinstance(handler, (staticmethod, classmethod)):
        return type(handler)(wrap(declaration, handler.__func__, condition))
    check_handler(handler)
    stack = Stack(declaration, handler, condition)
    inner = stack.handler
    position, name = _update_parameter(inner)

    def find(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) > position:
            return args[position]
        if name in kwargs:
            return kwargs[name]
        if position == _NOWHERE:
            return _search(args, kwargs)
        raise TypeError(f"{called(inner)} was called without its update")

    @functools.wraps(inner)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        update = args[position] if len(args) > position else find(args, kwargs)
        try:
            visit = Visit(stack, update)
        except SessionBusy as busy:
            if not stack.drops(busy):
                raise
            logger.debug("An update is ignored, as busy='drop' says: %s", busy)
            return None
        try:
            if stack.conditions and not visit.matches(stack.conditions):
                return visit.pass_on()
            result = inner(*args, **kwargs)
            visit.save()
        except BaseException:
            visit.abandon()
            raise
        finally:
            visit.leave()
        return result

    stack.wrapper = wrapper
    if stack.queued is not None:
        stack.wrapper = _queueing(stack.queued, wrapper, find)
    setattr(stack.wrapper, _MARK, stack)
    return stack.wrapper  # type: ignore[no-any-return]


def _queueing(declaration: "Declaration", handler: Handler, find: Callable[..., Any]) -> Handler:
    @functools.wraps(handler)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        name = declaration.name(find(args, kwargs))
        if name is None:
            return handler(*args, **kwargs)
        return backlogs.handle(name + declaration.lock_suffix, handler, args, kwargs)

    return wrapper  # type: ignore[return-value]


_NOWHERE = sys.maxsize


def _update_parameter(handler: Callable[..., Any]) -> tuple[int, str]:
    """Where a handler takes its update: the first parameter, or the one after self."""
    try:
        parameters = list(inspect.signature(handler).parameters.values())
    except ValueError:  # some builtins have none
        return _NOWHERE, ""
    position = 1 if parameters and parameters[0].name in ("self", "cls") else 0
    if len(parameters) <= position:
        return _NOWHERE, ""
    if parameters[position].kind is inspect.Parameter.VAR_POSITIONAL:
        return _NOWHERE, ""
    return position, parameters[position].name


def _search(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The update among arguments of which the handler's signature says nothing."""
    given = [*args, *kwargs.values()]
    updates = [value for value in given if type(value).__module__ == "telebot.types"]
    if not given:
        raise TypeError("a handler was called without its update")
    return updates[0] if updates else given[0]
